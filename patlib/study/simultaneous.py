"""Simultaneous intervals for the differences between all methods of a benchmark.

A score depends on the seed of the run and on the images that happen to be in the test part. The
score of method m with seed s is modelled as::

    y_ms = μ_m + b_s + g_m + e_ms,    e_ms ~ N(0, σ²),    g ~ N(0, W)

b_s is what a seed does to all methods (the same first weights, the same order of the images), e_ms
the rest, with one variance σ² for all methods, so that few seeds a method give many degrees of
freedom together. g_m is what another test part would change; its covariance W comes from a
bootstrap over groups of test images, the same ones for all methods. With n seeds each, a difference
has the variance::

    Var(m - k) = 2 σ² / n + W_mm + W_kk - 2 W_mk

The intervals hold together: their half-widths are the 95 % quantile of the largest of all
studentised errors, drawn by simulation. Without g that is Dunnett's test (1955) against a control,
and Hsu's comparison with the best (1984); here with both sources of error.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from patlib.checks import check_choice, check_integer, check_number
from patlib.metrics import class_groups
from patlib.study.runs import Run
from patlib.study.statistics import GROUPS, mean_iou

CONFIDENCE = 0.95
FEWEST_GROUPS = 20  # of test images, to draw whole groups; else blocks of neighbours are drawn
BLOCK = 20  # neighbouring images that are drawn together then, at most half of a group
DRAWS = 20_000  # of the largest error


@dataclass(frozen=True)
class Contrast:
    """The score of a method minus that of a reference.

    Attributes:
        method, reference: their labels.
        mean: the difference, in [-1, 1].
        low, high: its 95 % interval, which holds together with those of the same family.
        wins: of the seeds that both have, in how many the method has the higher score (a tie
            counts half).
        seeds: how many both have.
    """

    method: str
    reference: str
    mean: float
    low: float
    high: float
    wins: float
    seeds: int

    def verdict(self, margin: float = 0.0) -> str:
        """``"higher"``, ``"lower"``, ``"equal"`` or ``"not distinguishable"``.

        Args:
            margin: differences up to this count as none, in the unit of the scores: the two are
                ``"equal"`` if the interval lies within ± margin.
        """
        check_number("margin", margin, minimum=0)
        if -margin < self.low and self.high < margin:
            return "equal"
        if self.low > 0 or self.high < 0:
            return "higher" if self.low > 0 else "lower"
        return "not distinguishable"


class MethodScores:
    """The scores of the methods of one benchmark, with both sources of error.

    Args:
        scores: method -> seed -> score in [0, 1].
        image_scores: method -> its mean score over the seeds on each resampled test part, (R,),
            see :func:`group_weights`. The parts are the same for all methods.
        groups: number of the groups or blocks that the test part consists of: the degrees of
            freedom of W are one fewer.

    Raises:
        ValueError: fewer than two methods, a method without a score, no method with two seeds, or
            resampled scores of other methods or different lengths.

    Attributes:
        methods: their labels.
        residual_std: σ; NaN without degrees of freedom.
        residual_dof: its degrees of freedom.
    """

    def __init__(
        self,
        scores: Mapping[str, Mapping[int, float]],
        image_scores: Mapping[str, np.ndarray],
        groups: int,
    ):
        self.scores, self.methods = scores, list(scores)
        if len(scores) < 2 or not all(scores.values()):
            raise ValueError("scores must have two methods or more, each with a seed")
        if set(image_scores) != set(scores):
            raise ValueError(
                f"image_scores must be of the methods {self.methods}, got {list(image_scores)}"
            )
        check_integer("groups", groups, minimum=2)
        self._fit_seeds()
        by_images = np.stack([np.asarray(image_scores[m], dtype=float) for m in self.methods])
        # A bootstrap over G groups has (G - 1) / G of the variance of the mean.
        self._of_images = np.cov(by_images) * groups / (groups - 1)
        self._image_dof = groups - 1

    def _fit_seeds(self) -> None:
        """Least squares of method + seed."""
        rows = [(m, s, y) for m, by_seed in self.scores.items() for s, y in by_seed.items()]
        seeds = sorted({s for _, s, _ in rows})
        design = np.zeros((len(rows), len(self.methods) + len(seeds) - 1))
        for row, (method, seed, _) in zip(design, rows, strict=True):
            row[self.methods.index(method)] = 1
            if seed != seeds[0]:
                row[len(self.methods) + seeds.index(seed) - 1] = 1
        y = np.array([y for *_, y in rows])
        if np.linalg.matrix_rank(design) < design.shape[1]:
            raise ValueError("scores must have seeds that connect all methods")
        effects = np.linalg.lstsq(design, y, rcond=None)[0]
        self.residual_dof = len(y) - design.shape[1]
        squares = float(((y - design @ effects) ** 2).sum())
        self.residual_std = (
            math.sqrt(squares / self.residual_dof) if self.residual_dof else math.nan
        )
        number = len(self.methods)
        self._effects = dict(zip(self.methods, effects[:number], strict=True))
        self._unscaled = np.linalg.inv(design.T @ design)[:number, :number]

    @cached_property
    def _errors(self) -> np.ndarray:
        """Draws of the error of each method's score over its estimated scale, (DRAWS, M).

        Both parts have an estimated variance: each is a normal error over the root of an
        independent χ² / ν, which gives Student's t where there is one part only.
        """
        rng = np.random.default_rng(0)

        def part(covariance, dof):
            root = _root(covariance)
            normal = rng.standard_normal((DRAWS, len(self.methods))) @ root.T
            return normal / np.sqrt(rng.chisquare(dof, (DRAWS, 1)) / dof)

        of_seeds = self.residual_std**2 * self._unscaled
        return part(of_seeds, self.residual_dof) + part(self._of_images, self._image_dof)

    def _standard_errors(self, method: str, others: Sequence[str]) -> np.ndarray:
        total = self.residual_std**2 * self._unscaled + self._of_images
        i, j = self.methods.index(method), [self.methods.index(m) for m in others]
        variance = total[i, i] + np.diag(total)[j] - 2 * total[i, j]
        return np.sqrt(variance.clip(0))

    def _studentised(self, method: str, others: Sequence[str]) -> np.ndarray:
        """Drawn errors of the differences others - method over their standard errors."""
        i, j = self.methods.index(method), [self.methods.index(m) for m in others]
        errors = self._errors[:, j] - self._errors[:, [i]]
        scale = self._standard_errors(method, others)
        return np.divide(errors, scale, out=np.zeros_like(errors), where=scale > 0)

    def against(self, reference: str, methods: Sequence[str] | None = None) -> list[Contrast]:
        """Methods minus a reference, with intervals that hold together (Dunnett).

        Args:
            reference: the control.
            methods: those that are compared with it; None for all others. The intervals are as wide
                as their number demands.

        Raises:
            ValueError: an unknown method, or a single seed: nothing is known about others.
        """
        check_choice("reference", reference, self.methods)
        others = [m for m in self.methods if m != reference] if methods is None else list(methods)
        for method in others:
            check_choice("methods", method, [m for m in self.methods if m != reference])
        self._require_seeds()
        errors = np.abs(self._studentised(reference, others)).max(1)
        half = np.quantile(errors, CONFIDENCE) * self._standard_errors(reference, others)
        contrasts = []
        for method, width in zip(others, half, strict=True):
            mean = self._effects[method] - self._effects[reference]
            pair = self.scores[method], self.scores[reference]
            shared = pair[0].keys() & pair[1].keys()
            pairs = [(pair[0][seed], pair[1][seed]) for seed in shared]
            contrasts.append(
                Contrast(
                    method,
                    reference,
                    float(mean),
                    float(mean - width),
                    float(mean + width),
                    sum((a > b) + 0.5 * (a == b) for a, b in pairs),
                    len(pairs),
                )
            )
        return contrasts

    def may_be_best(self) -> list[str]:
        """The methods that are not shown to be lower than another (Hsu's comparison with the best).

        The best method is among them with 95 % confidence. The fewer the seeds and the larger the
        scatter, the longer the list.
        """
        self._require_seeds()
        kept = []
        for method in self.methods:
            others = [m for m in self.methods if m != method]
            # One-sided: how far above its true value the lead of another may come out.
            quantile = np.quantile(self._studentised(method, others).max(1), CONFIDENCE)
            lead = np.array([self._effects[m] - self._effects[method] for m in others])
            if (lead < quantile * self._standard_errors(method, others)).all():
                kept.append(method)
        return kept

    def _require_seeds(self) -> None:
        if self.residual_dof < 1:
            raise ValueError("scores must have two seeds or more of a method, to judge by")


def score_methods(
    runs: Iterable[Run],
    metric: str = "miou",
    counts: Callable[[Run], np.ndarray] | None = None,
    resamples: int = 2000,
) -> MethodScores:
    """The scores of all methods of a benchmark that have a record.

    Args:
        runs: of one benchmark, with their records.
        metric: ``"miou"``, the mean IoU of the ``"head"``, ``"mid"`` or ``"tail"``, or
            ``"pixel_accuracy"``.
        counts: what a run has counted in each test image, int (N, 3, L); None takes its
            ``counts``. Another function scores the runs under shifts of their logits.
        resamples: of the test part.

    Raises:
        ValueError: runs of several benchmarks or scored on different test images; see also
            :class:`MethodScores`.
    """
    runs = [run for run in runs if run.record]
    check_choice("metric", metric, ("miou", *GROUPS, "pixel_accuracy"))
    if len({run.benchmark for run in runs}) > 1:
        raise ValueError("runs of several data sets or networks cannot be compared with each other")
    tested = {run.record.provenance["data"]["test"]: run for run in runs}
    if len(tested) > 1:
        names = ", ".join(run.planned.name for run in tested.values())
        raise ValueError(f"scored on different test images: {names}")
    groups = class_groups(runs[0].record.result["class_counts"])

    def score(summed: np.ndarray) -> np.ndarray:
        if metric == "pixel_accuracy":
            return summed[..., 0, :].sum(-1) / summed[..., 1, :].sum(-1)
        return mean_iou(summed, None if metric == "miou" else groups[metric])

    weights, number = group_weights(runs[0].test_groups, resamples)
    scores, of_images = defaultdict(dict), defaultdict(list)
    for run in runs:
        found = (counts or _counts)(run).astype(float)
        scores[run.method][run.seed] = float(score(found.sum(0)))
        summed = (weights @ found.reshape(len(found), -1)).reshape(-1, *found.shape[1:])
        of_images[run.method].append(score(summed))
    means = {method: np.mean(parts, axis=0) for method, parts in of_images.items()}
    return MethodScores(dict(scores), means, number)


def _counts(run: Run) -> np.ndarray:
    return run.images(("counts",))["counts"]


def group_weights(
    group_sizes: Sequence[int], resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, int]:
    """How often each test image is in each resampled test part.

    Images of one room, or neighbouring frames of a drive, are alike. So whole groups are drawn with
    replacement; where there are fewer than ``FEWEST_GROUPS``, blocks of ``BLOCK`` neighbours,
    within each group (the circular block bootstrap, Politis and Romano 1992).

    Args:
        group_sizes: images of each group, in the order of the images.
        resamples: R.
        seed: of the draws.

    Returns:
        float64 (R, N), and how many groups or blocks make up a test part.
    """
    sizes = [check_integer("group_sizes", size, minimum=1) for size in group_sizes]
    check_integer("resamples", resamples, minimum=2)
    rng = np.random.default_rng(seed)
    if len(sizes) >= FEWEST_GROUPS:
        drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=resamples)
        return np.repeat(drawn, sizes, axis=1).astype(float), len(sizes)
    parts, blocks = [], 0
    for size in sizes:
        block = min(BLOCK, max(1, size // 2))  # at least two
        number = math.ceil(size / block)
        starts = rng.integers(size, size=(resamples, number, 1))
        drawn = ((starts + np.arange(block)) % size).reshape(resamples, -1)[:, :size]
        parts.append(np.stack([np.bincount(row, minlength=size) for row in drawn]))
        blocks += number
    return np.concatenate(parts, 1).astype(float), blocks


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of a covariance, also of a singular one.

    It is unique: other processors give eigenvectors other signs, and draws would differ by them.
    """
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T
