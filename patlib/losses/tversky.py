"""Tversky loss."""

from typing import ClassVar

from torch import Tensor, nn

from patlib.checks import check_number

from ._checks import MOST
from ._region import RegionLoss, import_losses


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Tversky loss: the mean over the classes of::

        1 - TP / (TP + α FP + β FN)
        TP = Σ_j p_lj y_lj,  FP = Σ_j p_lj (1 - y_lj),  FN = Σ_j (1 - p_lj) y_lj

    with p_lj the softmax probability of class l at pixel j, y_lj 1 where l is the true class and 0
    elsewhere, and the sums over all valid pixels j of the batch together. A class without a pixel
    in the batch has the term 0, and the mean is over all L classes, present or not, as
    segmentation-models-pytorch has it.
    α = β = 0.5 is `dice_loss`, α = β = 1 is `jaccard_loss`.

    The loss of a batch is no mean of the losses of its parts, however weighted: in gradient
    accumulation and in several processes each part has regions of its own.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        alpha: α, > 0 and <= 1e6, the weight of false positives, without unit.
        beta: β > 0, that of false negatives.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean"; the loss has no value for a single pixel.

    Raises:
        ValueError: α or β not positive or not finite; shapes, types or labels other than these.
        ModuleNotFoundError: segmentation-models-pytorch, which computes it, is not installed.

    Source: Salehi et al., "Tversky Loss Function for Image Segmentation Using 3D Fully
    Convolutional Deep Networks", MLMI 2017, Eq. (3), whose best α and β are the defaults.
    """
    loss = TverskyLoss(alpha=alpha, beta=beta, ignore_index=ignore_index, reduction=reduction)
    return loss(logits, target)


class TverskyLoss(RegionLoss):
    """Tversky loss as a Module: see `tversky_loss`.

    >>> import torch
    >>> from patlib.losses import TverskyLoss
    >>> logits = torch.zeros(1, 2, 1, 4)  # p = 1/2 everywhere
    >>> target = torch.tensor([[[0, 0, 0, 1]]])
    >>> round(TverskyLoss()(logits, target).item(), 4)
    0.5299

    The two terms are 1 - 1.5 / (1.5 + 0.15 + 1.05) and 1 - 0.5 / (0.5 + 0.45 + 0.35).
    """

    label: ClassVar[str] = "Tversky"
    color: ClassVar[str] = "#882255"
    marker: ClassVar[str] = "<"

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        self.alpha = check_number("alpha", alpha, above=0, maximum=MOST)
        self.beta = check_number("beta", beta, above=0, maximum=MOST)
        super().__init__(num_classes=num_classes, ignore_index=ignore_index, reduction=reduction)

    def _criterion(self) -> nn.Module:
        return import_losses("tversky").TverskyLoss(
            "multiclass", alpha=self.alpha, beta=self.beta, ignore_index=self.ignore_index
        )
