"""Balancing logit variation."""

from typing import ClassVar

import torch
from torch import Tensor

from patlib.checks import check_choice, check_number

from ._checks import MOST, ClassCounts, check_batch, check_class_counts, fill_absent
from ._formula import SegmentationLoss, computed_in, cross_entropy, per_channel, reduce
from ._fused import CHUNK, pixel_loss
from ._prior import latin_hypercube, softmax_prior, standard_normal_quantile

# Draws of the noise from which the class prior is computed, to about 0.1 %.
DRAWS = 4096

NOISES = ("gaussian", "uniform", "xavier")


def blv_variation(class_counts: ClassCounts) -> Tensor:
    """Share of the noise that each class gets, f_c / max f: float64 (L,), on the CPU.

        f_c = log Σ n - log n_c

    so the rarest class gets 1 (all get 0 if there is only one class).

    Args:
        class_counts: n_c, valid pixels per class of the training set, (L,). A class of 0 pixels
            is treated as the rarest of the others.

    Raises:
        ValueError: counts missing, negative or not finite.

    Source: Wang et al., CVPR 2023.
    """
    counts = check_class_counts(class_counts)
    rarity = counts.sum().log() - fill_absent(counts).log()
    # With a single class the largest f is 0.
    return rarity / rarity.max().clamp_min(torch.finfo(rarity.dtype).tiny)


def draw_noise(logits: Tensor, noise: str, sigma: float) -> Tensor:
    """A new tensor of one number for each logit, from PyTorch's global generator of the device."""
    drawn = torch.empty_like(logits, dtype=computed_in(logits), requires_grad=False)
    if noise == "uniform":
        return drawn.uniform_(-sigma, sigma)
    if noise == "xavier":
        # Xavier's normal initialisation, variance 2 / (fan_in + fan_out), of an L x L matrix.
        sigma = logits.shape[1] ** -0.5
    return drawn.normal_(std=sigma)


def vary(logits: Tensor, drawn: Tensor, variation: Tensor) -> Tensor:
    """x_c + |clamp(δ, -1, 1)| · f_c / max f, in the memory of the drawn δ: no other is needed."""
    share = variation.to(drawn)
    rows = [drawn]
    if drawn.device.type == "cpu" and drawn.ndim > 2 and not torch.compiler.is_compiling():
        # Some rows of an image at a time, so that they stay in the cache from step to step.
        height = max(CHUNK * drawn.shape[2] // max(drawn[:1].numel(), 1), 1)
        rows = [part for image in drawn.split(1) for part in image.split(height, 2)]
    for part in rows:
        part.abs_().clamp_max_(1).mul_(per_channel(share, part))
    return drawn.add_(logits)


def blv_loss(
    logits: Tensor,
    target: Tensor,
    class_counts: ClassCounts,
    *,
    noise: str = "gaussian",
    sigma: float = 0.5,
    training: bool = True,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Balancing logit variation: cross-entropy of `x_c + |clamp(δ, -1, 1)| · f_c / max f`.

    f_c = log Σ n - log n_c, with n_c the number of pixels of class c in the training set, and δ a
    fresh random number for each logit: the rarer the class, the more its logits vary. Only in
    training; otherwise it is cross-entropy. The noise never lowers a logit, so that training takes
    its mean off the logits of rare classes again: their prior is a little below their frequency.

    At σ = 0.5, the best of the PAT paper, this is close to cross-entropy; the authors of BLV take
    σ = 6 in their paper and 4 in their code.

    The noise comes from PyTorch's global generator of the logits' device (`torch.manual_seed`).

    Of a batch in parts, as in gradient accumulation and in several processes, the mean is that of
    the parts' means, each weighted with its share of the valid pixels.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        class_counts: n_c, valid pixels per class of the training set, (L,). A class of 0 pixels
            is treated as the rarest of the others. In a training loop use the Module, which makes
            f only once.
        noise: δ is "gaussian", normal with standard deviation sigma; "uniform" on
            [-sigma, sigma]; or "xavier", normal with variance 2 / (2L), which does not use sigma.
            The PAT paper names a Xavier noise without defining it: this is our reading.
        sigma: spread of δ, in logits, >= 0.
        training: whether to add the noise. The Module passes its own mode.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean" over the valid pixels of the batch (0 if it has none), their "sum", or
            "none": one value a pixel, `(B, *spatial)`, 0 at ignored ones.

    Raises:
        ValueError: counts missing, negative, not finite or not L; an unknown noise; sigma
            negative or not finite; shapes, types or labels other than these.

    Source: Wang et al., "Balancing Logit Variation for Long-tailed Semantic Segmentation",
    CVPR 2023.
    """
    loss = BLVLoss(
        class_counts, noise=noise, sigma=sigma, ignore_index=ignore_index, reduction=reduction
    )
    return loss.train(training)(logits, target)


class BLVLoss(SegmentationLoss):
    """Balancing logit variation as a Module: see `blv_loss`. Noise in training mode only.

    >>> import torch
    >>> from patlib.losses import BLVLoss
    >>> logits = torch.zeros(2, 4, 8, 8, requires_grad=True)
    >>> target = torch.randint(4, (2, 8, 8))
    >>> loss = BLVLoss(class_counts=[9_000, 900, 90, 9], noise="gaussian", sigma=0.5)
    >>> loss(logits, target) == loss(logits, target)  # in training mode: other noise
    tensor(False)
    >>> loss.eval()(logits, target) == loss(logits, target)
    tensor(True)
    """

    label: ClassVar[str] = "BLV"
    color: ClassVar[str] = "#227755"
    marker: ClassVar[str] = "X"

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        noise: str = "gaussian",
        sigma: float = 0.5,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        variation = blv_variation(class_counts)
        super().__init__(num_classes=len(variation), ignore_index=ignore_index, reduction=reduction)
        self.noise = check_choice("noise", noise, NOISES)
        self.sigma = check_number("sigma", sigma, minimum=0, maximum=MOST)
        self.register_buffer("variation", variation, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        labels = check_batch(logits, target, self.ignore_index, self.reduction, self.num_classes)
        if self.training:
            drawn = draw_noise(logits, self.noise, self.sigma)
            logits = vary(logits, drawn, self.variation)
        loss, _ = pixel_loss(logits, labels, cross_entropy)
        return reduce(loss, logits, labels, self.reduction)

    def _prior(self, class_sizes: Tensor) -> Tensor:
        # Of the logits without noise, trained with it.
        u = latin_hypercube(DRAWS, len(self.variation))
        if self.noise == "uniform":
            drawn = self.sigma * (2 * u - 1)
        else:
            std = self.sigma if self.noise == "gaussian" else len(self.variation) ** -0.5
            drawn = std * standard_normal_quantile(u)
        offsets = vary(torch.zeros_like(drawn), drawn, self.variation)
        return softmax_prior(class_sizes.sum(0), offsets, torch.full((DRAWS,), 1 / DRAWS).double())
