"""What the losses share: the checks at the door, log p of the true class, the reduction.

Every loss of this package has the same form. From the logits x (B, L, *spatial) it takes, for each
pixel, the log-probability of its true class y under a softmax of adjusted logits z = z(x),

    log p = z_y - log Σ_l exp(z_l),

and sums a function of that one number over the valid pixels. So each loss file does three things:
`prepare`, `true_class_log_prob`, `reduce`, with its own equation between them.
"""

import math
import numbers

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

REDUCTIONS = ("mean", "sum", "none")


def check_number(name, value, *, minimum=-math.inf, above=-math.inf, below=math.inf):
    """Return `value` as a float; ValueError unless finite, >= minimum, > above and < below."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # Never true of NaN or ±inf, whatever the bounds.
    if real and value >= minimum and above < value < below:
        return float(value)
    bounds = ((">=", minimum), (">", above), ("<", below))
    allowed = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
    raise ValueError(f"{name} must be a finite number {allowed}".rstrip() + f", got {value!r}")


def check_choice(name, value, allowed):
    """Return `value`; ValueError unless it is one of the tuple `allowed`."""
    # isinstance keeps 1 from passing for True.
    if not any(isinstance(value, type(choice)) and value == choice for choice in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def check_integer(name, value, *, minimum=None):
    """Return `value` as an int; ValueError unless it is one and >= minimum."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or (minimum is not None and value < minimum):
        bound = "" if minimum is None else f" >= {minimum}"
        raise ValueError(f"{name} must be an integer{bound}, got {value!r}")
    return int(value)


def check_class_counts(class_counts, num_classes=None) -> Tensor:
    """Return the pixels per class as a float64 CPU tensor (L,), a class without pixels as 1.

    Raises ValueError if they are missing, not numbers, not 1-D, negative, not finite, or not
    `num_classes` long.
    """
    if class_counts is None:
        raise ValueError(
            "class_counts is missing: this loss needs the number of valid pixels per class in the "
            "training set; patlib.data.count_classes(dataset) gives it"
        )
    if isinstance(class_counts, Tensor):
        numeric = class_counts.dtype != torch.bool and not class_counts.is_complex()
    else:
        # By way of NumPy, because torch would read a list of floats as float32.
        class_counts = np.asarray(class_counts)
        numeric = class_counts.dtype.kind in "iuf"
    if not numeric or class_counts.ndim != 1 or len(class_counts) == 0:
        raise ValueError(
            "class_counts must be a list of numbers, one a class, got "
            f"{class_counts.dtype} of shape {tuple(class_counts.shape)}"
        )
    if num_classes is not None and len(class_counts) != num_classes:
        raise ValueError(
            f"class_counts must have one number for each of the {num_classes} classes, "
            f"got {len(class_counts)}"
        )
    if isinstance(class_counts, np.ndarray):
        class_counts = torch.from_numpy(class_counts.astype(np.float64))
    counts = class_counts.detach().to("cpu", torch.float64)
    wrong = ~torch.isfinite(counts) | (counts < 0)
    if wrong.any():
        raise ValueError(f"class_counts must be finite and >= 0, got {counts[wrong][0].item():g}")
    return counts.where(counts > 0, 1)


def check_channels(logits, num_classes):
    """ValueError unless logits (B, L, *spatial) have `num_classes` channels."""
    if logits.ndim > 1 and logits.shape[1] != num_classes:
        raise ValueError(
            f"this loss is for {num_classes} classes, got logits with {logits.shape[1]} channels, "
            f"of shape {tuple(logits.shape)}"
        )


def prepare(logits, target, ignore_index, reduction, num_classes=None) -> tuple[Tensor, Tensor]:
    """Check what a loss was called with; return the logits to compute on, and the valid pixels.

    The logits come back as float32 (half, bfloat16) or as they are (float32, float64); `valid` is
    True (B, *spatial) where the target is not `ignore_index`. Raises ValueError for logits that
    are not floating (B, L, *spatial) or whose L is not `num_classes`, a target that is not int64
    (B, *spatial) and, where looking costs no wait for a device, for a label that is no class.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_integer("ignore_index", ignore_index)
    if not logits.is_floating_point() or logits.ndim < 2 or logits.shape[1] == 0:
        raise ValueError(
            "logits must be floating, of shape (B, L, *spatial) with L >= 1, got "
            f"{logits.dtype} of shape {tuple(logits.shape)}"
        )
    if target.dtype != torch.int64:
        raise ValueError(f"target must be int64 class labels, got {target.dtype}")
    if target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            "target must be (B, *spatial) for logits (B, L, *spatial), got target "
            f"{tuple(target.shape)} for logits {tuple(logits.shape)}"
        )
    if num_classes is not None:
        check_channels(logits, num_classes)
    valid = target != ignore_index
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = valid & ((target < 0) | (target >= logits.shape[1]))
        if wrong.any():
            raise ValueError(
                f"target must be in 0 ... {logits.shape[1] - 1} or ignore_index={ignore_index}, "
                f"got {target[wrong][0].item()}"
            )
    return (logits if logits.dtype == torch.float64 else logits.float()), valid


def true_class_log_prob(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """log softmax(logits) of each pixel's true class, (B, *spatial); 0 at ignored pixels.

    Differentiable in `logits`; no gradient reaches them from an ignored pixel.
    """
    return -F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")


def per_channel(constant: Tensor, logits: Tensor) -> Tensor:
    """A constant of each class (L,), shaped to broadcast over logits (B, L, *spatial)."""
    return constant.to(logits).reshape(-1, *(1 for _ in logits.shape[2:]))


def per_pixel(constant: Tensor, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """The constant (L,) of each pixel's true class, (B, *spatial).

    An ignored pixel gets class 0's: nothing is multiplied with it there but log p = 0.
    """
    label = target.where(valid, 0)
    return constant.to(logits)[label]


def reduce(loss: Tensor, valid: Tensor, reduction: str) -> Tensor:
    """Reduce per-pixel losses (0 at ignored pixels); the mean is over the valid pixels.

    No valid pixel gives 0, still connected to the logits, so that backward() works.
    """
    if reduction == "none":
        return loss
    total = loss.sum()
    # Counted in int64: a float32 sum of ones stops at 2**24 pixels.
    return total if reduction == "sum" else total / valid.sum().clamp_min(1)


class PixelLoss(nn.Module):
    """What the Modules of this package keep: `num_classes`, `ignore_index`, `reduction`.

    Args:
        num_classes: L; given, logits of another number of channels are refused.
        ignore_index: label of the pixels to leave out.
        reduction: "mean", "sum" or "none"; the loss says over what the mean is.
    """

    def __init__(self, *, num_classes=None, ignore_index=255, reduction="mean"):
        super().__init__()
        if num_classes is not None:
            num_classes = check_integer("num_classes", num_classes, minimum=1)
        self.num_classes = num_classes
        self.ignore_index = check_integer("ignore_index", ignore_index)
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)

    def check_channels(self, logits):
        if self.num_classes is not None:
            check_channels(logits, self.num_classes)

    def _apply(self, fn, recurse=True):
        # A constant of each class follows .to(device), but stays float64 when the model around it
        # is turned into half or bfloat16, where log(10**7) is off by 0.06. (MPS has no float64.)
        for name, constant in list(self.named_buffers(recurse=False)):
            device = fn(constant.float()).device
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._buffers[name] = constant.to(device, dtype)
        return self

    def extra_repr(self):
        shown = ((k, v) for k, v in vars(self).items() if k[0] != "_" and k != "training")
        return ", ".join(f"{name}={value!r}" for name, value in shown)
