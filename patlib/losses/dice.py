"""Dice loss."""

from typing import ClassVar

from torch import Tensor, nn

from ._region import RegionLoss, import_losses


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Dice loss: the mean over the classes of::

        1 - 2 Σ_j p_lj y_lj / (Σ_j p_lj + Σ_j y_lj)

    with p_lj the softmax probability of class l at pixel j, y_lj 1 where l is the true class and 0
    elsewhere, and the sums over all valid pixels j of the batch together. A class without a pixel
    in the batch has the term 0, and the mean is over all L classes, present or not, as
    segmentation-models-pytorch has it.

    The loss of a batch is no mean of the losses of its parts, however weighted: in gradient
    accumulation and in several processes each part has regions of its own.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean"; the loss has no value for a single pixel.

    Raises:
        ValueError: shapes, types or labels other than these.
        ModuleNotFoundError: segmentation-models-pytorch, which computes it, is not installed.

    Source: Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical
    Image Segmentation", 3DV 2016; here with p and y not squared, as is usual now.
    """
    loss = DiceLoss(ignore_index=ignore_index, reduction=reduction)
    return loss(logits, target)


class DiceLoss(RegionLoss):
    """Dice loss as a Module: see `dice_loss`.

    >>> import torch
    >>> from patlib.losses import DiceLoss
    >>> logits = torch.zeros(1, 2, 1, 4)  # p = 1/2 everywhere
    >>> target = torch.tensor([[[0, 0, 0, 1]]])
    >>> round(DiceLoss()(logits, target).item(), 4)  # terms 1 - 3/5, 1 - 1/3
    0.5333
    """

    label: ClassVar[str] = "Dice"
    color: ClassVar[str] = "#332288"
    marker: ClassVar[str] = "p"

    def _criterion(self) -> nn.Module:
        return import_losses("dice").DiceLoss("multiclass", ignore_index=self.ignore_index)
