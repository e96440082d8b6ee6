"""Focal loss."""

from typing import ClassVar

import torch
from torch import Tensor

from patlib.checks import check_number

from ._checks import check_batch, check_channels
from ._formula import PixelLoss, reduce, smallest_log
from ._fused import pixel_loss


def check_gamma(gamma: float) -> float:
    return check_number("gamma", gamma, minimum=0)


def focal(log_p: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """(1 - p)^γ · (-log p), element by element, and its derivative by log p.

    -(1 - p)^γ + γ (1 - p)^(γ - 1) · p log p
    """
    # p log p is 0 at p = 0, where ∞ · 0 is not a number.
    finite = log_p.clamp_min(smallest_log(log_p.dtype))
    # expm1 keeps 1 - p exact near p = 1. Where p has rounded to 1 the clamp keeps the derivative
    # of (1 - p)^γ finite for γ < 1: there it is multiplied by log p = 0.
    one_minus_p = (-torch.expm1(finite)).clamp_min(torch.finfo(log_p.dtype).tiny)
    power = one_minus_p**gamma
    through_power = (power * -finite / one_minus_p) * (1 - one_minus_p)  # -(1 - p)^(γ - 1) p log p
    return power * -log_p, torch.add(power, through_power, alpha=gamma).neg_()


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss, softmax form: (1 - p)^γ · (-log p).

    p is the softmax probability of the pixel's true class. The larger γ, the less well-classified
    pixels weigh; γ = 0 is cross-entropy.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        gamma: the focusing exponent γ >= 0, without unit.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean" over the valid pixels of the batch (0 if it has none), their "sum", or
            "none": one value a pixel, `(B, *spatial)`, 0 at ignored ones.

    Raises:
        ValueError: γ negative or not finite; shapes, types or labels other than these.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, Eq. (4), with the
    softmax probability of the true class for p_t and without the class weight α.
    """
    gamma = check_gamma(gamma)
    labels = check_batch(logits, target, ignore_index, reduction)
    loss, _ = pixel_loss(logits, labels, lambda log_p: focal(log_p, gamma))
    return reduce(loss, labels, reduction)


class FocalLoss(PixelLoss):
    """Focal loss as a Module: see `focal_loss`.

    >>> import torch
    >>> from patlib.losses import FocalLoss
    >>> logits = torch.zeros(2, 4, 8, 8, requires_grad=True)
    >>> target = torch.randint(4, (2, 8, 8))
    >>> round(FocalLoss(gamma=2.0)(logits, target).item(), 4)  # (3/4)² log 4
    0.7798
    """

    label: ClassVar[str] = "Focal"
    color: ClassVar[str] = "#999933"
    marker: ClassVar[str] = "s"

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        super().__init__(num_classes=num_classes, ignore_index=ignore_index, reduction=reduction)
        self.gamma = check_gamma(gamma)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_channels(logits, self.num_classes)
        return focal_loss(
            logits,
            target,
            gamma=self.gamma,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
