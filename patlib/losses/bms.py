"""Balanced softmax."""

from typing import ClassVar

import torch
from torch import Tensor

from patlib.checks import check_number

from ._checks import MOST, ClassCounts, check_batch, check_class_counts, fill_absent
from ._formula import SegmentationLoss, computed_in, cross_entropy, per_channel, reduce
from ._fused import pixel_loss


def bms_loss(
    logits: Tensor,
    target: Tensor,
    class_counts: ClassCounts,
    *,
    tau: float = 1.0,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Balanced softmax: cross-entropy of the logits x_c + τ log n_c::

        -log( n_y^τ exp(x_y) / Σ_c n_c^τ exp(x_c) )

    with y the pixel's true class and n_c the number of pixels of class c in the training set. The
    prior of the classes is added in training only, so that the plain logits predict as if all
    classes were equally frequent. (The meta sampler of the original is not part of it.) With
    another τ it is the logit-adjusted loss of Menon et al., whose plain logits predict as if the
    frequencies were ∝ n^(1-τ); τ = 0 is cross-entropy.

    Of a batch in parts, as in gradient accumulation and in several processes, the mean is that of
    the parts' means, each weighted with its share of the valid pixels.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        class_counts: n_c, valid pixels per class of the training set, (L,). A class of 0 pixels
            is treated as the rarest of the others. Only their ratios matter.
        tau: τ, finite, without unit: 1 for balanced softmax.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean" over the valid pixels of the batch (0 if it has none), their "sum", or
            "none": one value a pixel, `(B, *spatial)`, 0 at ignored ones.

    Raises:
        ValueError: counts missing, negative, not finite or not L; τ not finite; shapes, types or
            labels other than these.

    Sources: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020;
    Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, Eq. (10).
    """
    loss = BMSLoss(class_counts, tau=tau, ignore_index=ignore_index, reduction=reduction)
    return loss(logits, target)


class BMSLoss(SegmentationLoss):
    """Balanced softmax as a Module: see `bms_loss`.

    >>> import torch
    >>> from patlib.losses import BMSLoss
    >>> logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    >>> target = torch.tensor([[[0, 1]]])
    >>> loss = BMSLoss(class_counts=[9_000, 1_000], reduction="none")
    >>> [round(value, 4) for value in loss(logits, target).flatten().tolist()]  # -log 0.9, -log 0.1
    [0.1054, 2.3026]
    """

    label: ClassVar[str] = "BMS"
    color: ClassVar[str] = "#aa66cc"
    marker: ClassVar[str] = "D"

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        tau: float = 1.0,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        log_counts = fill_absent(check_class_counts(class_counts)).log()
        super().__init__(
            num_classes=len(log_counts), ignore_index=ignore_index, reduction=reduction
        )
        self.tau = check_number("tau", tau, minimum=-MOST, maximum=MOST)
        self.register_buffer("log_counts", log_counts, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        labels = check_batch(logits, target, self.ignore_index, self.reduction, self.num_classes)
        log_n = (self.tau * self.log_counts).to(logits.device, computed_in(logits))

        def balanced(x: Tensor, label: Tensor) -> Tensor:
            return x + per_channel(log_n, x)

        loss, _ = pixel_loss(logits, labels, cross_entropy, adjust=balanced)
        return reduce(loss, logits, labels, self.reduction)

    def _prior(self, class_sizes: Tensor) -> Tensor:
        # At the minimum softmax(x + τ log n) is the share of the pixels.
        pixels = class_sizes.sum(0)
        log_prior = pixels.log() - self.tau * self.log_counts.to(pixels)
        return torch.softmax(log_prior, 0)
