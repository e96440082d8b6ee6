"""Differences between two methods, with confidence intervals over seeds and test images.

For the few runs of a user's own comparison; the study's own are judged together, by
``patlib.study.simultaneous``.

A difference between two methods depends on the seeds of the runs and on which images are in the
test part. Runs of the same seed are compared pair by pair. The standard deviation of these
differences and a bootstrap over the test images (the same images for both methods) give one
interval, see :func:`interval`. A method is called higher or lower if the interval excludes 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import integrate, stats

from patlib.checks import check_integer
from patlib.study.wording import signed, signed_end

GROUPS = ("head", "mid", "tail")


@dataclass(frozen=True)
class Difference:
    """A mean test score of a method minus that of another, over the seeds that both have.

    Attributes:
        method: label of the first.
        reference: label of the second.
        by_seed: seed -> difference, in [-1, 1].
        low: lower end of the 95 % interval over seeds and test images; with one seed, over the
            images alone.
        high: its upper end.
    """

    method: str
    reference: str
    by_seed: dict[int, float]
    low: float
    high: float

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.by_seed.values())))

    @property
    def verdict(self) -> str:
        """``"higher"`` or ``"lower"`` if the interval excludes 0.

        Else ``"not distinguishable"``, as is a difference that prints as 0.0 points. With one seed
        ``"not judged"``: nothing is known about others.
        """
        if len(self.by_seed) == 1:
            return "not judged"
        if signed(self.mean) == signed(0) or not (self.low > 0 or self.high < 0):
            return "not distinguishable"
        return "higher" if self.mean > 0 else "lower"

    @property
    def significant(self) -> bool:
        """True if one is called higher or lower than the other."""
        return self.verdict in ("higher", "lower")

    @property
    def short(self) -> str:
        """In percentage points, for a table, such as ``lower: −2.5 (−3.8 to −1.2)``."""
        alone = "images alone " if self.verdict == "not judged" else ""
        ends = f"{signed_end(self.low)} to {signed_end(self.high)}"
        return f"{self.verdict}: {signed(self.mean)} ({alone}{ends})"


def interval(by_seed: Sequence[float], image_variance: float) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds, over other seeds and other test images.

    Each alone would give an interval: Student's, mean ± t s / √n with n - 1 degrees of freedom and
    s² the variance of the n seeds on these test images; and the normal one, mean ± 1.96 √w, with w
    the variance of the mean over the choice of images. Half-widths of independent errors combine in
    quadrature (Howe 1974):

        mean ± √(t² s² / n + 1.96² w).

    It covers the truth at least 95 times in 100, and up to 99 where the seeds are few and both
    parts alike. With one seed there is only the second part, and nothing is said about other seeds.

    Args:
        by_seed: n values, one for each seed.
        image_variance: w, such as the variance of :func:`bootstrap_differences`.

    Returns:
        Its ends, in the unit of the values.
    """
    n = len(by_seed)
    half = stats.norm.ppf(0.975) * math.sqrt(image_variance)
    if n > 1:
        seeds = stats.t.ppf(0.975, n - 1) * np.std(by_seed, ddof=1) / math.sqrt(n)
        half = math.hypot(half, seeds)
    mean = float(np.mean(by_seed))
    return float(mean - half), float(mean + half)


def bootstrap_differences(
    first: np.ndarray,
    second: np.ndarray,
    classes: Sequence[int] | None = None,
    resamples: int = 2000,
    block: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Differences in mean IoU on resampled test images.

    Images are drawn with replacement, the same ones for both sides and all runs. Counts are summed
    over the images, then come IoU and its mean over the classes (those in neither truth nor
    prediction left out), then the mean over runs. Variation between seeds is not included.

    Neighbouring frames of a video look alike: drawn one by one they count as more images than they
    are, and the interval comes out too narrow. ``block`` draws blocks of neighbours instead (the
    circular block bootstrap, Politis and Romano 1992).

    Args:
        first, second: (R, N, 3, L), true positives, true and predicted pixels of each class in
            each of N images, of R runs; R may differ between the two.
        classes: those that the mean is over; None for all.
        resamples: how many test parts are drawn.
        block: how many neighbouring images are drawn together; at most N / 2.
        seed: of the draws.

    Returns:
        (resamples,) differences of the means, first minus second, in [-1, 1].

    Raises:
        ValueError: shapes that do not fit each other, or a block longer than N / 2.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 4 or first.shape[1:] != second.shape[1:] or first.shape[2] != 3:
        raise ValueError(
            "counts must be of shape (runs, images, 3, classes), with the same images and classes, "
            f"got {first.shape} and {second.shape}"
        )
    sums = [[_resample(c, resamples, block, seed) for c in side] for side in (first, second)]
    return _difference(*sums, classes)


def _difference(first, second, classes) -> np.ndarray:
    """Difference of mean IoU from resampled counts (M, 3, L) of each run of the two sides."""
    means = [np.mean([mean_iou(c, classes) for c in side], axis=0) for side in (first, second)]
    return means[0] - means[1]


def _resample(counts: np.ndarray, resamples: int, block: int, seed: int) -> np.ndarray:
    """Counts (N, 3, L) summed over the images of each resampled test part: (M, 3, L)."""
    num_images = len(counts)
    if check_integer("block", block, minimum=1) > num_images / 2:
        raise ValueError(f"block must be at most half of the {num_images} test images, got {block}")
    weights = _draws(num_images, check_integer("resamples", resamples, minimum=1), block, seed)
    # Sums of whole numbers: exact in float64.
    flat = counts.reshape(num_images, -1).astype(float)
    return (weights @ flat).reshape(-1, *counts.shape[1:])


@lru_cache(maxsize=8)
def _draws(num_images: int, resamples: int, block: int, seed: int) -> np.ndarray:
    """How often each image is in each resampled test part, float64 (M, N)."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(num_images, size=(resamples, math.ceil(num_images / block), 1))
    drawn = ((starts + np.arange(block)) % num_images).reshape(resamples, -1)[:, :num_images]
    return np.stack([np.bincount(row, minlength=num_images) for row in drawn]).astype(float)


def mean_iou(counts: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
    """Mean IoU from counts (..., 3, L) of true positives, true and predicted pixels, as in
    :class:`patlib.metrics.SegmentationMetrics`. NaN where no class of the mean is anywhere.
    """
    tp, true, predicted = np.moveaxis(np.asarray(counts, dtype=float), -2, 0)
    union = true + predicted - tp
    present = union > 0
    iou = np.divide(tp, union, out=np.zeros_like(union), where=present)
    if classes is not None:
        iou, present = iou[..., list(classes)], present[..., list(classes)]
    number = present.sum(-1)
    return np.divide(iou.sum(-1), number, out=np.full(number.shape, np.nan), where=number > 0)


def chance_range(scores: np.ndarray) -> tuple[float, float]:
    """The expected range of the means of K settings that have no effect.

    Runs of one seed start from the same weights and see the images in the same order: their scores
    rise and fall together. So a score is modelled as setting + seed + residual, with normal
    residuals, and only the residual is chance.

    Args:
        scores: (K, S), K settings with the same S seeds; both at least 2.

    Returns:
        The standard deviation of the residuals (that of a two-way analysis of variance), and the
        expected range, largest minus smallest, of K means over S seeds with such residuals
        (Tippett 1925). Both in the unit of the scores.

    Raises:
        ValueError: fewer than two settings or seeds.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or min(scores.shape) < 2:
        raise ValueError(
            f"scores must be of shape (settings, seeds), two or more each, got {scores.shape}"
        )
    settings, seeds = scores.shape
    residuals = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
    std = math.sqrt((residuals**2).sum() / ((settings - 1) * (seeds - 1)))
    return std, expected_range(settings) * std / math.sqrt(seeds)


@lru_cache
def expected_range(number: int) -> float:
    """E[max - min] = ∫ 1 - Φ(x)^K - (1 - Φ(x))^K dx, of K standard normal draws (Tippett 1925)."""

    def density(x):
        return 1 - stats.norm.cdf(x) ** number - stats.norm.sf(x) ** number

    return integrate.quad(density, -8, 8)[0]
