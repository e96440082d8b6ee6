"""Focal loss."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from patlib.checks import check_number

from ._checks import MOST, ClassCounts, check_batch, check_channels
from ._formula import SegmentationLoss, reduce, smallest_log
from ._fused import pixel_loss
from ._prior import pointwise_prior
from .class_weights import (
    ClassWeights,
    resolve_class_weights,
    weights_of_call,
    with_weights,
)


def check_gamma(gamma: float) -> float:
    return check_number("gamma", gamma, minimum=0, maximum=MOST)


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
    class_weights: Sequence[float] | Tensor | None = None,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss, softmax form: w · (1 - p)^γ · (-log p).

    p is the softmax probability of the pixel's true class. The larger γ, the less well-classified
    pixels weigh; γ = 0 is cross-entropy. w is the α of the original, one number for each class; the
    mean divides by the number of valid pixels, not by the sum of their weights (see `ce_loss`).

    Of a batch in parts, as in gradient accumulation and in several processes, the mean is that of
    the parts' means, each weighted with its share of the valid pixels.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        gamma: the focusing exponent γ >= 0, without unit.
        class_weights: w, (L,), finite, >= 0; None for 1. The Module makes them by a scheme.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean", the sum of the (weighted) losses divided by the number of valid pixels of
            the batch (0 if it has none); the "sum"; or "none": one value a pixel,
            `(B, *spatial)`, 0 at ignored ones.

    Raises:
        ValueError: γ negative or not finite; weights negative, not finite or not L; shapes,
            types or labels other than these.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, Eq. (5), with the
    softmax probability of the true class for p_t.
    """
    gamma = check_gamma(gamma)
    labels = check_batch(logits, target, ignore_index, reduction)
    weights = weights_of_call(class_weights, labels.num_classes)
    loss, _ = pixel_loss(logits, labels, lambda log_p: focal(log_p, gamma), weights=weights)
    return reduce(loss, logits, labels, reduction)


class FocalLoss(SegmentationLoss):
    """Focal loss as a Module: see `focal_loss`.

    Args:
        gamma: the focusing exponent γ >= 0.
        class_weights: w of the class of a pixel: None for 1; L numbers >= 0, taken as they are; or
            "inverse", "median_frequency" or "enet", made by
            `patlib.losses.class_weights.class_weights` from the counts.
        class_counts: n_c, valid pixels per class of the training set, (L,); needed for a scheme.
        class_images: training images that hold each class, (L,); needed for "median_frequency".

    >>> import torch
    >>> from patlib.losses import FocalLoss
    >>> logits = torch.zeros(2, 4, 8, 8, requires_grad=True)
    >>> target = torch.randint(4, (2, 8, 8))
    >>> round(FocalLoss(gamma=2.0)(logits, target).item(), 4)  # (3/4)² log 4
    0.7798
    """

    label: ClassVar[str] = "Focal"
    color: ClassVar[str] = "#bbbb66"
    marker: ClassVar[str] = "s"

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        class_weights: ClassWeights = None,
        class_counts: ClassCounts | None = None,
        class_images: ClassCounts | None = None,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        shown, weights = resolve_class_weights(
            class_weights, num_classes, class_counts, class_images
        )
        num_classes = num_classes if weights is None else len(weights)
        super().__init__(num_classes=num_classes, ignore_index=ignore_index, reduction=reduction)
        self.gamma = check_gamma(gamma)
        self.class_weights = shown
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_channels(logits, self.num_classes)
        return focal_loss(
            logits,
            target,
            gamma=self.gamma,
            class_weights=self.weights,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def _prior(self, class_sizes: Tensor) -> Tensor:
        mass = with_weights(class_sizes.sum(0), self.weights)
        return pointwise_prior(mass, lambda log_p: focal(log_p, self.gamma))
