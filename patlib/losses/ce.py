"""Cross-entropy."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ._checks import ClassCounts, check_batch, check_channels
from ._formula import SegmentationLoss, cross_entropy, reduce
from ._fused import pixel_loss
from ._prior import normalised
from .class_weights import ClassWeights, resolve_class_weights, weights_of_call, with_weights


def ce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    class_weights: Sequence[float] | Tensor | None = None,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Softmax cross-entropy: w · (-log p).

    p is the softmax probability of the pixel's true class, and w a weight of that class,
    1 by default.

    The mean divides by the number of valid pixels, as that of `cb_loss` does.
    `torch.nn.CrossEntropyLoss(weight=w)` divides by the sum of their weights instead, so that its
    loss depends on the ratios of w only, and a batch of rare classes counts as much as any other.

    Of a batch in parts, as in gradient accumulation and in several processes, the mean is that of
    the parts' means, each weighted with its share of the valid pixels.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        class_weights: w, (L,), finite, >= 0; None for 1. The Module makes them by a scheme.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean", the sum of the (weighted) losses divided by the number of valid pixels of
            the batch (0 if it has none); the "sum"; or "none": one value a pixel,
            `(B, *spatial)`, 0 at ignored ones.

    Raises:
        ValueError: weights negative, not finite or not L; shapes, types or labels other than these.

    Source: Eq. (1) of the PAT paper, averaged over pixels as usual rather than over images.
    """
    labels = check_batch(logits, target, ignore_index, reduction)
    weights = weights_of_call(class_weights, labels.num_classes)
    loss, _ = pixel_loss(logits, labels, cross_entropy, weights=weights)
    return reduce(loss, logits, labels, reduction)


class CELoss(SegmentationLoss):
    """Softmax cross-entropy as a Module: see `ce_loss`.

    Args:
        class_weights: w of the class of a pixel: None for 1; L numbers >= 0, taken as they are; or
            "inverse", "median_frequency" or "enet", made by
            `patlib.losses.class_weights.class_weights` from the counts.
        class_counts: n_c, valid pixels per class of the training set, (L,); needed for a scheme.
        class_images: training images that hold each class, (L,); needed for "median_frequency".

    >>> import torch
    >>> from patlib.losses import CELoss
    >>> logits = torch.zeros(2, 4, 8, 8, requires_grad=True)
    >>> target = torch.randint(4, (2, 8, 8))
    >>> target[:, 0] = 255  # ignored
    >>> round(CELoss()(logits, target).item(), 4)  # log 4
    1.3863
    >>> loss = CELoss(class_weights="inverse", class_counts=[9_000, 900, 90, 10])
    >>> loss.weights.tolist()
    [0.2777777777777778, 2.7777777777777777, 27.77777777777778, 250.0]
    """

    label: ClassVar[str] = "CE"
    color: ClassVar[str] = "#000000"
    marker: ClassVar[str] = "o"

    def __init__(
        self,
        *,
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
        self.class_weights = shown
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_channels(logits, self.num_classes)
        return ce_loss(
            logits,
            target,
            class_weights=self.weights,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def _prior(self, class_sizes: Tensor) -> Tensor:
        return normalised(with_weights(class_sizes.sum(0), self.weights))
