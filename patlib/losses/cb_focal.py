"""Class-balanced focal loss."""

from typing import ClassVar

from torch import Tensor

from ._checks import ClassCounts, check_batch
from ._formula import SegmentationLoss, reduce
from ._fused import pixel_loss
from ._prior import pointwise_prior
from .cb import cb_weights
from .focal import check_gamma, focal


def cb_focal_loss(
    logits: Tensor,
    target: Tensor,
    class_counts: ClassCounts,
    *,
    gamma: float = 2.0,
    beta: float | None = None,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Class-balanced focal loss: w_y · (1 - p)^γ · (-log p), with the weights w of `cb_loss`.

    p is the softmax probability of the pixel's true class y; w_c ∝ (1 - b) / (1 - b^n_c),
    mean w_c = 1. γ = 0 is `cb_loss`.

    Of a batch in parts, as in gradient accumulation and in several processes, the mean is that of
    the parts' means, each weighted with its share of the valid pixels.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        class_counts: n_c, valid pixels per class of the training set, (L,). A class of 0 pixels
            is treated as the rarest of the others. In a training loop use the Module, which makes
            the weights only once.
        gamma: the focusing exponent γ >= 0, without unit.
        beta: b, in [0, 1); None for (N - 1) / N, with N = Σ n_c; see `cb_loss`.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean", the sum of the weighted losses divided by the number of valid pixels of
            the batch (0 if it has none), not by the sum of their weights; the "sum"; or "none":
            one weighted value a pixel, `(B, *spatial)`, 0 at ignored ones.

    Raises:
        ValueError: counts missing, negative, not finite or not L; γ negative or not finite; beta
            outside [0, 1); shapes, types or labels other than these.

    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, on
    the focal loss of Lin et al., ICCV 2017 (softmax form).
    """
    loss = CBFocalLoss(
        class_counts, gamma=gamma, beta=beta, ignore_index=ignore_index, reduction=reduction
    )
    return loss(logits, target)


class CBFocalLoss(SegmentationLoss):
    """Class-balanced focal loss as a Module: see `cb_focal_loss`.

    >>> import torch
    >>> from patlib.losses import CBFocalLoss
    >>> logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    >>> target = torch.tensor([[[0, 1]]])
    >>> loss = CBFocalLoss(class_counts=[9_000_000, 1_000], gamma=2.0, reduction="none")
    >>> [round(value, 4) for value in loss(logits, target).flatten().tolist()]
    [0.0001, 0.3465]
    """

    label: ClassVar[str] = "CBFocal"
    color: ClassVar[str] = "#1144cc"
    marker: ClassVar[str] = "v"

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        gamma: float = 2.0,
        beta: float | None = None,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        class_weights = cb_weights(class_counts, beta)
        super().__init__(
            num_classes=len(class_weights), ignore_index=ignore_index, reduction=reduction
        )
        self.gamma = check_gamma(gamma)
        self.beta = beta
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        labels = check_batch(logits, target, self.ignore_index, self.reduction, self.num_classes)
        loss, _ = pixel_loss(
            logits, labels, lambda log_p: focal(log_p, self.gamma), weights=self.class_weights
        )
        return reduce(loss, logits, labels, self.reduction)

    def _prior(self, class_sizes: Tensor) -> Tensor:
        mass = class_sizes.sum(0) * self.class_weights.to(class_sizes)
        return pointwise_prior(mass, lambda log_p: focal(log_p, self.gamma))
