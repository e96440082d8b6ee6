"""Cross-entropy."""

from typing import ClassVar

from torch import Tensor

from ._checks import check_batch, check_channels
from ._formula import PixelLoss, cross_entropy, reduce
from ._fused import pixel_loss


def ce_loss(
    logits: Tensor, target: Tensor, *, ignore_index: int | None = 255, reduction: str = "mean"
) -> Tensor:
    """Softmax cross-entropy: -log p, with p the softmax probability of the pixel's true class.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean" over the valid pixels of the batch (0 if it has none), their "sum", or
            "none": one value a pixel, `(B, *spatial)`, 0 at ignored ones.

    Raises:
        ValueError: shapes, types or labels other than these.

    Source: Eq. (1) of the PAT paper, averaged over pixels as usual rather than over images.
    """
    labels = check_batch(logits, target, ignore_index, reduction)
    loss, _ = pixel_loss(logits, labels, cross_entropy)
    return reduce(loss, labels, reduction)


class CELoss(PixelLoss):
    """Softmax cross-entropy as a Module: see `ce_loss`.

    >>> import torch
    >>> from patlib.losses import CELoss
    >>> logits = torch.zeros(2, 4, 8, 8, requires_grad=True)
    >>> target = torch.randint(4, (2, 8, 8))
    >>> target[:, 0] = 255  # ignored
    >>> round(CELoss()(logits, target).item(), 4)  # log 4
    1.3863
    """

    label: ClassVar[str] = "CE"
    color: ClassVar[str] = "#000000"
    marker: ClassVar[str] = "o"

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_channels(logits, self.num_classes)
        return ce_loss(logits, target, ignore_index=self.ignore_index, reduction=self.reduction)
