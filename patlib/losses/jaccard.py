"""Jaccard loss."""

from typing import ClassVar

from torch import Tensor, nn

from ._region import RegionLoss, import_losses


def jaccard_loss(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Jaccard (soft IoU) loss: the mean over the classes of::

        1 - I / (Σ_j p_lj + Σ_j y_lj - I),    I = Σ_j p_lj y_lj

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

    Source: Rahman and Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image
    Segmentation", ISVC 2016.
    """
    loss = JaccardLoss(ignore_index=ignore_index, reduction=reduction)
    return loss(logits, target)


class JaccardLoss(RegionLoss):
    """Jaccard loss as a Module: see `jaccard_loss`.

    >>> import torch
    >>> from patlib.losses import JaccardLoss
    >>> logits = torch.zeros(1, 2, 1, 4)  # p = 1/2 everywhere
    >>> target = torch.tensor([[[0, 0, 0, 1]]])
    >>> round(JaccardLoss()(logits, target).item(), 4)  # terms 1 - 1.5/3.5, 1 - 0.5/2.5
    0.6857
    """

    label: ClassVar[str] = "Jaccard"
    color: ClassVar[str] = "#cc6677"
    marker: ClassVar[str] = "h"

    def _criterion(self) -> nn.Module:
        return import_losses("jaccard").JaccardLoss("multiclass", ignore_index=self.ignore_index)
