"""Class-balanced cross-entropy."""

from typing import ClassVar

import torch
from torch import Tensor

from patlib.checks import check_number

from ._checks import ClassCounts, check_batch, check_class_counts, fill_absent
from ._formula import SegmentationLoss, cross_entropy, reduce
from ._fused import pixel_loss
from ._prior import normalised


def cb_weights(class_counts: ClassCounts, beta: float | None = None) -> Tensor:
    """Weight of each class, ∝ 1 / E_c, with a mean of 1: float64 (L,), on the CPU.

        E_c = (1 - b^n_c) / (1 - b)

    is the effective number of pixels of class c, with n_c = class_counts[c]. The mean is over the
    classes that have pixels; one of 0 pixels gets the weight of the rarest of them.

    Args:
        class_counts: n_c, valid pixels per class of the training set, (L,).
        beta: b, in [0, 1); None for (N - 1) / N, with N = Σ n_c.

    Raises:
        ValueError: counts missing, negative or not finite; beta outside [0, 1).

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
    """
    counts = check_class_counts(class_counts)
    if beta is None:
        # 1 - b = 1 / N. In float32 b itself would round to 1 for N above 2**24 pixels.
        one_minus_b = 1 / counts.sum().clamp_min(1)
    else:
        one_minus_b = torch.tensor(
            1 - check_number("beta", beta, minimum=0, below=1), dtype=torch.float64
        )
    # 1 - b^n = -expm1(n log b) and log b = log1p(-(1 - b)): b^n is never taken from 1.
    filled = fill_absent(counts)
    effective_number = -torch.expm1(filled * torch.log1p(-one_minus_b)) / one_minus_b
    weights = 1 / effective_number
    return weights / weights[counts > 0].mean()


def cb_loss(
    logits: Tensor,
    target: Tensor,
    class_counts: ClassCounts,
    *,
    beta: float | None = None,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Class-balanced cross-entropy: w_y · (-log p), with w_c ∝ (1 - b) / (1 - b^n_c), mean w_c = 1.

    p is the softmax probability of the pixel's true class y and n_c the number of pixels of class
    c in the training set; w_c is the inverse of the class's effective number of samples.

    The original counts images, thousands a class, and fixes b = 0.999 or 0.9999. Pixels are
    counted in millions: with such a b every b^n_c is 0 and all classes weigh the same, which is
    cross-entropy. By default b = (N - 1) / N therefore, with N the number of all counted pixels;
    w_c is then close to 1 / n_c.

    Of a batch in parts, as in gradient accumulation and in several processes, the mean is that of
    the parts' means, each weighted with its share of the valid pixels.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        class_counts: n_c, valid pixels per class of the training set, (L,). A class of 0 pixels
            is treated as the rarest of the others. In a training loop use the Module, which makes
            the weights only once.
        beta: b, in [0, 1); None for (N - 1) / N.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean", the sum of the weighted losses divided by the number of valid pixels of
            the batch (0 if it has none), not by the sum of their weights; the "sum"; or "none":
            one weighted value a pixel, `(B, *spatial)`, 0 at ignored ones.

    Raises:
        ValueError: counts missing, negative, not finite or not L; beta outside [0, 1); shapes,
            types or labels other than these.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
    """
    loss = CBLoss(class_counts, beta=beta, ignore_index=ignore_index, reduction=reduction)
    return loss(logits, target)


class CBLoss(SegmentationLoss):
    """Class-balanced cross-entropy as a Module: see `cb_loss`.

    >>> import torch
    >>> from patlib.losses import CBLoss
    >>> logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    >>> target = torch.tensor([[[0, 1]]])
    >>> loss = CBLoss(class_counts=[9_000_000, 1_000], reduction="none")
    >>> [round(value, 4) for value in loss(logits, target).flatten().tolist()]
    [0.0002, 1.3861]
    """

    label: ClassVar[str] = "CB"
    color: ClassVar[str] = "#88ccee"
    marker: ClassVar[str] = "^"

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        beta: float | None = None,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        class_weights = cb_weights(class_counts, beta)
        super().__init__(
            num_classes=len(class_weights), ignore_index=ignore_index, reduction=reduction
        )
        self.beta = beta
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        labels = check_batch(logits, target, self.ignore_index, self.reduction, self.num_classes)
        loss, _ = pixel_loss(logits, labels, cross_entropy, weights=self.class_weights)
        return reduce(loss, logits, labels, self.reduction)

    def _prior(self, class_sizes: Tensor) -> Tensor:
        return normalised(class_sizes.sum(0) * self.class_weights.to(class_sizes))
