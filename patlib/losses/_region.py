"""Base of the losses on regions, which segmentation-models-pytorch computes."""

import importlib
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from patlib.checks import check_choice

from ._checks import check_batch
from ._formula import SegmentationLoss, computed_in


def import_losses(name: str) -> Any:
    """`segmentation_models_pytorch.losses`, which nothing else in this package needs."""
    try:
        return importlib.import_module("segmentation_models_pytorch.losses")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"loss {name!r} needs segmentation-models-pytorch, which is not installed: "
            "pip install 'patlib-segmentation[train]'",
            name=error.name,
        ) from error


# The library adds up the pixels one after another on a CPU. In float32 the sum is off by 1e-5 for
# as many pixels, by 3e-4 for a million and by 1e-2 for 16 million.
MOST_IN_FLOAT32 = 2**18


class RegionLoss(SegmentationLoss):
    """A loss of the predicted region of each class: one number for a batch, not one for a pixel.

    Half and bfloat16 logits are computed in float32, and all those of more than `MOST_IN_FLOAT32`
    pixels on a CPU in float64. Ignored pixels count in no region, and a batch of ignored pixels
    only gives 0. `reduction` is "mean": the mean over the classes.

    """

    #: the criterion is for float32 only
    in_float32: ClassVar[bool] = False

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        check_choice("reduction", reduction, ("mean",))
        super().__init__(num_classes=num_classes, ignore_index=ignore_index, reduction=reduction)
        self.criterion = self._criterion()

    def _criterion(self) -> nn.Module:
        """The loss of segmentation-models-pytorch, "multiclass", with this `ignore_index`."""
        raise NotImplementedError

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        columns, *_ = check_batch(
            logits, target, self.ignore_index, self.reduction, self.num_classes
        )
        dtype = computed_in(logits)
        if self.in_float32 and dtype == torch.float64:
            # So that the largest fit: the softmax is the same.
            logits = logits - logits.detach().amax(1, keepdim=True)
        labels = target.reshape(*columns.shape, 1)  # (B, P, 1)
        many = logits.device.type == "cpu" and columns.numel() > MOST_IN_FLOAT32
        summed_in = torch.float64 if many else dtype
        x = logits.to(torch.float32 if self.in_float32 else summed_in)
        x = x.reshape(*logits.shape[:2], *labels.shape[1:])
        if self.ignore_index is not None:
            # Whatever an ignored pixel holds: 0 · ∞ is not a number.
            x = x.where((labels != self.ignore_index).unsqueeze(1), 0)
        if logits.shape[1] == 1:  # p = 1 is right everywhere; the library refuses it for Lovász
            return (0 * x).sum().to(dtype)
        # lovasz returns an empty tensor where no pixel is valid.
        return self.criterion(x, labels).sum().to(dtype)

    def _prior(self, class_sizes: Tensor) -> None:
        return None
