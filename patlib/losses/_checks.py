"""What a loss checks before it computes: logits and labels of a batch, counts of the classes."""

import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from patlib.checks import check_choice, check_integer

ClassCounts = Sequence[float] | np.ndarray | Tensor
REDUCTIONS = ("mean", "sum", "none")
# The label of ignored pixels may be one of 0 ... 255 without a pass over the target to remap it.
MAX_LABELS = 256
# Of parameters and of weights that are given: beyond, products with the pixels of a batch may leave
# float32.
MOST, MOST_WEIGHT = 1e6, 1e12


def check_class_counts(class_counts: ClassCounts | None, num_classes: int | None = None) -> Tensor:
    """Return the pixels per class as a float64 tensor (L,) on the CPU.

    Raises ValueError if they are missing, not numbers, not 1-D, negative, not finite, all 0, or not
    ``num_classes`` long.
    """
    if class_counts is None:
        raise ValueError(
            "class_counts must be the valid pixels per class of the training set, which this loss "
            "needs, got None; patlib.data.count_classes(dataset) returns them"
        )
    return _check_per_class("class_counts", class_counts, num_classes)


def _check_per_class(name: str, values: Any, num_classes: int | None) -> Tensor:
    if isinstance(values, Tensor):
        numeric = values.dtype != torch.bool and not values.is_complex()
    else:
        # Through NumPy, because torch would read a list of floats as float32.
        try:
            values = np.asarray(values)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(
                f"{name} must be a sequence of numbers, one for each class, got {values!r}"
            ) from error
        numeric = values.dtype.kind in "iuf"
    if not numeric or values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"{name} must be a sequence of numbers, one for each class, got "
            f"{values.dtype} of shape {tuple(values.shape)}"
        )
    if num_classes is not None and len(values) != num_classes:
        raise ValueError(
            f"{name} must have one number for each of the {num_classes} classes, got {len(values)}"
        )
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values.astype(np.float64))
    values = values.detach().to("cpu", torch.float64)
    wrong = ~torch.isfinite(values) | (values < 0)
    if wrong.any():
        raise ValueError(f"{name} must be finite and >= 0, got {values[wrong][0].item():g}")
    if not values.any():
        raise ValueError(f"{name} must be > 0 for at least one class, got only zeros")
    return values


def check_class_images(
    class_images: ClassCounts | None, counts: Tensor, num_images: int | None = None
) -> Tensor:
    """Return the number of images that hold each class as a float64 tensor (L,) on the CPU.

    Raises ValueError if they are missing, not as `check_class_counts` allows, not as many as the
    class counts, above ``num_images``, or 0 for other classes than the counts are.
    """
    if class_images is None:
        raise ValueError(
            "class_images must be the number of training images that hold each class, which this "
            "loss needs, got None; (patlib.data.class_sizes(dataset) > 0).sum(0) returns them"
        )
    images = _check_per_class("class_images", class_images, len(counts))
    if ((images > 0) != (counts > 0)).any():
        wrong = int(((images > 0) != (counts > 0)).nonzero()[0])
        raise ValueError(
            "class_images must be 0 exactly where class_counts is 0, got "
            f"{images[wrong].item():g} images and {counts[wrong].item():g} pixels of class {wrong}"
        )
    if num_images is not None and (images > num_images).any():
        raise ValueError(
            f"class_images must be <= num_images={num_images}, got {images.max().item():g}"
        )
    return images


def check_class_weights(weights: Any, num_classes: int | None) -> Tensor:
    """Return a weight of each class as a float64 tensor (L,) on the CPU.

    Raises ValueError if they are not numbers, not 1-D, negative, not finite, all 0, or not
    ``num_classes`` long.
    """
    if isinstance(weights, str | dict | bool) or not hasattr(weights, "__len__"):
        raise ValueError(
            "class_weights must be None, 'inverse', 'median_frequency', 'enet' or one number for "
            f"each class, got {weights!r}"
        )
    return _check_per_class("class_weights", weights, num_classes)


def check_class_sizes(class_sizes: Any, num_classes: int | None) -> Tensor:
    """Return the pixels of each class in each image as a float64 tensor (N, L) on the CPU."""
    if not isinstance(class_sizes, Tensor):
        class_sizes = torch.from_numpy(np.asarray(class_sizes))
    sizes = class_sizes.detach().to("cpu", torch.float64)
    wrong = sizes.ndim != 2 or not sizes.any() or not torch.isfinite(sizes).all()
    if wrong or (sizes < 0).any() or num_classes not in (None, sizes.shape[1]):
        raise ValueError(
            "class_sizes must be the valid pixels of each class in each training image, of shape "
            f"(N, {num_classes or 'L'}), finite, >= 0 and not all 0, got shape "
            f"{tuple(class_sizes.shape)}; patlib.data.class_sizes(dataset) returns them"
        )
    return sizes


def fill_absent(counts: Tensor) -> Tensor:
    """Give classes without training pixels the smallest count of the others; warn of them.

    So a class that training cannot show is treated as the rarest one that it shows. (With a count
    of 1, it alone would hold nearly the whole weight of CB or the whole margin of LDAM.)
    """
    absent = counts == 0
    if not absent.any():
        return counts
    warnings.warn(
        f"class_counts is 0 for class {', '.join(map(str, absent.nonzero().flatten().tolist()))}: "
        "the loss treats it as the rarest class that has pixels",
        stacklevel=2,
    )
    return counts.where(~absent, counts[~absent].min())


def check_channels(logits: Any, num_classes: int | None) -> None:
    """ValueError if logits (B, L, *spatial) have another number of channels than ``num_classes``.

    Anything that is no batch of logits at all is left to `check_batch`.
    """
    known = num_classes is not None and isinstance(logits, Tensor) and logits.ndim > 1
    if known and logits.shape[1] != num_classes:
        raise ValueError(
            f"logits must be (B, {num_classes}, *spatial), as this loss is for {num_classes} "
            f"classes, got {logits.shape[1]} channels in logits of shape {tuple(logits.shape)}"
        )


class Labels(NamedTuple):
    """The target of a batch as columns of a table of constants: see `check_batch`.

    Attributes:
        target: (B, P), int64; P = H · W or the product of the spatial axes.
        ignored: the column of the ignored pixels; may be one of the classes.
        width: number of columns. Those that are neither a class nor `ignored` are wrong labels.
        num_classes: L; the classes are the columns 0 ... L-1.
        counts: pixels in each column, (B, width), where they have been counted.
    """

    target: Tensor
    ignored: int
    width: int
    num_classes: int
    counts: Tensor | None

    def class_sizes(self) -> Tensor:
        """S: the valid pixels of each class in each image, int64 (B, L)."""
        counts = count(self.target, self.width) if self.counts is None else self.counts
        sizes = counts[:, : self.num_classes].clone()
        sizes[:, self.ignored : self.ignored + 1] = 0
        return sizes

    def num_valid(self) -> Tensor:
        # Counted in int64: a float32 sum of ones stops at 2**24 pixels.
        if self.counts is None:
            return (self.target != self.ignored).sum()
        return self.target.numel() - self.counts[:, self.ignored].sum()


def count(columns: Tensor, width: int) -> Tensor:
    """How often each of `width` numbers occurs in the rows of an int64 (B, P); int64 (B, width)."""
    counts = columns.new_zeros(len(columns), width)
    return counts.scatter_add_(1, columns, columns.new_ones(()).expand(columns.shape))


def check_batch(
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None,
    reduction: str,
    num_classes: int | None = None,
) -> Labels:
    """Check what a loss was called with; return its labels.

    Raises ValueError for logits that are not floating (B, L, *spatial) or whose L is not
    `num_classes`, a target that is not int64 (B, *spatial), ignore_index=255 if that is a class,
    and on a CPU for a label that is no class. On a GPU, where looking waits for the device, it does
    so only where the environment variable PATLIB_CHECK_LABELS is 1. Otherwise, and in
    `torch.compile`, such a label makes the loss NaN or fails in an assertion of the device.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    if ignore_index is not None:
        check_integer("ignore_index", ignore_index)
    _check_shapes(logits, target)
    check_channels(logits, num_classes)
    num_classes = logits.shape[1]
    check_ignore_index(ignore_index, num_classes)
    columns = target.reshape(len(target), math.prod(target.shape[1:]))
    if ignore_index is not None and 0 <= ignore_index < max(num_classes, MAX_LABELS):
        ignored, width = int(ignore_index), max(num_classes, ignore_index + 1)
    else:
        # The column after the classes; a wrong label must not land there too.
        ignored, width = num_classes, num_classes + 1
        wrong = columns.where(columns != num_classes, num_classes + 1)
        columns = wrong if ignore_index is None else wrong.where(columns != ignore_index, ignored)
    counts = None
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        # One pass over the labels finds the wrong ones, counts the valid ones, and each class.
        try:
            counts = count(columns, width)
            known = counts[:, :num_classes].sum() + counts[:, num_classes:][:, -1:].sum()
        except RuntimeError:  # of scatter_add_: no such column
            known = None
        if known != columns.numel():
            check_labels(target, num_classes, ignore_index)
    elif not torch.compiler.is_compiling() and os.environ.get("PATLIB_CHECK_LABELS") == "1":
        check_labels(target, num_classes, ignore_index)
    return Labels(columns, ignored, width, num_classes, counts)


def check_labels(target: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """ValueError for a label that is neither a class nor ignored."""
    wrong = (target < 0) | (target >= num_classes)
    allowed = f"in 0 ... {num_classes - 1}"
    if ignore_index is not None:
        wrong &= target != ignore_index
        allowed += f" or ignore_index={ignore_index}"
    if wrong.any():
        raise ValueError(f"target must be {allowed}, got {target[wrong][0].item()}")


def check_ignore_index(ignore_index: int | None, num_classes: int) -> None:
    """ValueError for the default of 255 where 255 is one of the classes."""
    if ignore_index == 255 and num_classes > 255:
        raise ValueError(
            f"ignore_index must not be 255 with {num_classes} classes, of which 255 is one, got "
            "255: pass None if no pixel is to be ignored, or another label, such as -1"
        )


def _check_shapes(logits: Any, target: Any) -> None:
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            hint = ""
            if name == "logits" and isinstance(value, Sequence | dict):
                hint = "; for several outputs (deep supervision) call the loss on each and add"
            raise ValueError(f"{name} must be a torch.Tensor, got {type(value)}{hint}")
    if not logits.is_floating_point() or logits.ndim < 2 or logits.shape[1] == 0:
        raise ValueError(
            "logits must be floating, of shape (B, L, *spatial) with L >= 1, got "
            f"{logits.dtype} of shape {tuple(logits.shape)}"
        )
    if target.shape != logits.shape[:1] + logits.shape[2:]:
        hint = ""
        if target.ndim == logits.ndim and target.shape[1] == 1:
            hint = "; target.squeeze(1) removes the axis of length 1"
        elif target.shape == logits.shape:
            hint = "; target.argmax(1) turns a one-hot target into labels"
        raise ValueError(
            "target must be (B, *spatial) for logits (B, L, *spatial), got target "
            f"{tuple(target.shape)} for logits {tuple(logits.shape)}{hint}"
        )
    if target.dtype != torch.int64:
        raise ValueError(
            f"target must be int64 class labels, got {target.dtype}; target.long() converts labels"
        )
