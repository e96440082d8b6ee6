"""Losses for long tails: each a function, a `torch.nn.Module`, and a name.

All are called like `torch.nn.CrossEntropyLoss`: `loss(logits, target)`, with logits
`(B, L, *spatial)` of any floating type and target `(B, *spatial)` int64, 255 being ignored
(`ignore_index`; None for no ignored pixels). They need PyTorch and NumPy only, but for those on
regions (dice, jaccard, tversky, lovasz), which segmentation-models-pytorch computes.

On CUDA the first call compiles the loss with `torch.compile`, which takes seconds and saves time
and memory afterwards. The environment variable `PATLIB_COMPILE=0` switches that off. A label that
is no class raises a ValueError on a CPU. On CUDA, where looking waits for the device, it does with
the environment variable `PATLIB_CHECK_LABELS=1`, for debugging; without it, and inside
`torch.compile`, the loss is NaN or an assertion of the device fails, as in PyTorch.

A mean is over the batch that the calling process has. Gradient accumulation and several processes
that average their gradients (DDP) take the plain mean of their parts' losses. It equals the loss of
the whole batch for PAT with `normalize="images"` if all have equally many images, and for the
losses that divide by the number of valid pixels if all have equally many of these. Each loss says
with which weights it equals that always.

Parameters are at most 1e6 and given weights at most 1e12. On a CPU, losses of finite logits are
finite, up to the largest that their type has, and so are the gradients: where the loss of a pixel
or the sum over the batch does not fit float32, it is computed again in float64. A result that does
not fit its type is the type's largest number, with the gradient of the exact loss. (float64 has no
wider type: there the loss of each pixel is cut off like that.) On CUDA and inside `torch.compile`,
where nothing looks, such a loss is infinite or NaN, never a wrong number.
"""

import inspect
from typing import Any

from patlib.checks import check_choice, check_integer, check_parameters

from ._checks import ClassCounts, check_class_counts
from ._formula import SegmentationLoss
from .blv import BLVLoss, blv_loss
from .bms import BMSLoss, bms_loss
from .cb import CBLoss, cb_loss
from .cb_focal import CBFocalLoss, cb_focal_loss
from .ce import CELoss, ce_loss
from .dice import DiceLoss, dice_loss
from .focal import FocalLoss, focal_loss
from .jaccard import JaccardLoss, jaccard_loss
from .ldam import LDAMLoss, ldam_loss
from .lovasz import LovaszLoss, lovasz_loss
from .mix import MixLoss, mix_loss
from .pat import PATLoss, pat_loss
from .tversky import TverskyLoss, tversky_loss

__all__ = [
    "LOSSES",
    "BLVLoss",
    "BMSLoss",
    "CBFocalLoss",
    "CBLoss",
    "CELoss",
    "DiceLoss",
    "FocalLoss",
    "JaccardLoss",
    "LDAMLoss",
    "LovaszLoss",
    "MixLoss",
    "PATLoss",
    "SegmentationLoss",
    "TverskyLoss",
    "blv_loss",
    "bms_loss",
    "build_loss",
    "cb_focal_loss",
    "cb_loss",
    "ce_loss",
    "dice_loss",
    "focal_loss",
    "jaccard_loss",
    "ldam_loss",
    "lovasz_loss",
    "mix_loss",
    "pat_loss",
    "tversky_loss",
]

LOSSES: dict[str, type[SegmentationLoss]] = {
    "ce": CELoss,
    "focal": FocalLoss,
    "cb": CBLoss,
    "cb_focal": CBFocalLoss,
    "bms": BMSLoss,
    "ldam": LDAMLoss,
    "blv": BLVLoss,
    "pat": PATLoss,
    "dice": DiceLoss,
    "jaccard": JaccardLoss,
    "tversky": TverskyLoss,
    "lovasz": LovaszLoss,
    "mix": MixLoss,
}


def build_loss(
    name: str,
    num_classes: int,
    class_counts: ClassCounts | None = None,
    class_images: ClassCounts | None = None,
    num_images: int | None = None,
    **params: Any,
) -> SegmentationLoss:
    """Return the loss of that name as a Module.

    What the training set tells comes from `sizes = patlib.data.class_sizes(dataset)`; a loss that
    does not need it ignores it, so that it can always be passed.

    Args:
        name: one of `LOSSES`.
        num_classes: L; logits with another number of channels are refused.
        class_counts: valid pixels of each class, (L,), `sizes.sum(0)`. Needed by cb, cb_focal, bms,
            ldam and blv, by the `class_weights` of ce and focal, and by pat's variants.
        class_images: images that hold each class, (L,), `(sizes > 0).sum(0)`. Needed by
            class_weights="median_frequency" and by pat's `presence_exponent`.
        num_images: images, `len(sizes)`. Needed by pat's `sizes="dataset"` and `presence_exponent`.
        params: parameters of the loss, as its Module takes them, e.g. `temperature=20.0`.

    Raises:
        ValueError: unknown name; class_counts missing where needed, or not L finite numbers >= 0;
            a parameter that the loss does not have, of the wrong type or out of bounds.
        ModuleNotFoundError: a loss on regions without segmentation-models-pytorch.

    >>> build_loss("pat", num_classes=13, temperature=5)
    PATLoss(num_classes=13, ignore_index=255, reduction='mean', deferred=None, temperature=5.0, \
epsilon=0.0, size_exponent=1.0, weight='beta', normalize='images', detach=False, sizes='image', \
presence_exponent=0.0)
    """
    check_choice("loss", name, tuple(LOSSES))
    num_classes = check_integer("num_classes", num_classes, minimum=1)
    module = LOSSES[name]
    signature = inspect.signature(module).parameters
    statistics = {
        "class_counts": class_counts,
        "class_images": class_images,
        "num_images": num_images,
    }
    given = {key: value for key, value in statistics.items() if key in signature}
    if "num_classes" in signature:
        given["num_classes"] = num_classes
    else:
        check_class_counts(class_counts, num_classes)
    check_parameters(f"loss {name!r}", params, signature.keys() - given.keys())
    return module(**given, **params)
