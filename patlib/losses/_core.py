"""What the losses share: the checks at the door, the loss of a pixel, the reduction.

Every loss of this package has the same form. From the logits x (B, L, *spatial) it takes, for each
pixel, the log-probability of its true class y under a softmax of adjusted logits z = z(x),

    log p = z_y - log Σ_l exp(z_l),

and weighs a function f of that one number: the loss of the pixel is w · f(log p), with w a
constant of the pixel's class, or of its class in its image. So each loss file says what z, w and f
are, `pixel_loss` computes it, and `reduce` sums it up.
"""

import functools
import math
import numbers
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

REDUCTIONS = ("mean", "sum", "none")
# Logits that are worked on at a time on a CPU, so that they and what is made of them stay in its
# cache: 2 MiB in float32.
CHUNK = 2**19


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


def check_batch(logits, target, ignore_index, reduction, num_classes=None) -> Tensor:
    """Check what a loss was called with; return the valid pixels, True (B, *spatial).

    Raises ValueError for logits that are not floating (B, L, *spatial) or whose L is not
    `num_classes`, a target that is not int64 (B, *spatial) and, where looking costs no wait for a
    device, for a label that is no class.
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
    if target.device.type == "cpu" and target.numel() and not torch.compiler.is_compiling():
        smallest, largest = torch.aminmax(target.where(valid, 0))
        if smallest < 0 or largest >= logits.shape[1]:
            wrong = valid & ((target < 0) | (target >= logits.shape[1]))
            raise ValueError(
                f"target must be in 0 ... {logits.shape[1] - 1} or ignore_index={ignore_index}, "
                f"got {target[wrong][0].item()}"
            )
    return valid


def computed_in(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits; float32 for all others, so for half and bfloat16."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def prepare(logits, target, ignore_index, reduction, num_classes=None) -> tuple[Tensor, Tensor]:
    """`check_batch`; return the logits in the type to compute in, and the valid pixels."""
    valid = check_batch(logits, target, ignore_index, reduction, num_classes)
    return logits.to(computed_in(logits)), valid


def true_class_log_prob(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """log softmax(logits) of each pixel's true class, (B, *spatial); 0 at ignored pixels.

    Differentiable in `logits`; no gradient reaches them from an ignored pixel.
    """
    if not torch.compiler.is_compiling():
        return -F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    # A comparison fuses with the softmax around it, forward and backward; a gather's gradient
    # would be one tensor more, of zeros to scatter into.
    true = is_true_class(logits, target) & (target != ignore_index).unsqueeze(1)
    return F.log_softmax(logits, 1).where(true, 0).sum(1)


def is_true_class(logits: Tensor, label: Tensor) -> Tensor:
    """True (B, L, *spatial) at each pixel's true class."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    return label.unsqueeze(1) == per_channel(classes, logits)


def per_channel(constant: Tensor, logits: Tensor) -> Tensor:
    """A constant of each class (L,), shaped to broadcast over logits (B, L, *spatial)."""
    return constant.reshape(-1, *(1 for _ in logits.shape[2:]))


def pixel_loss(
    logits: Tensor,
    target: Tensor,
    f: Callable[[Tensor], Tensor],
    *,
    ignore_index: int,
    weights: Tensor | None = None,
    adjust: Callable[[Tensor, Tensor], Tensor] | None = None,
    scale: float = 1.0,
    total_of: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss w · f(log p) of each pixel, and Σ w · g(log p) over all of them.

    Costs less than `F.cross_entropy`, in time and memory: on a CPU by `_InChunks`, on a GPU by
    what `torch.compile` makes of `composed`, inside of a user's `torch.compile` by `composed`
    itself. What has been checked is not checked again.

    Args:
        logits: x (B, L, *spatial), floating.
        target: (B, *spatial), int64, 0 ... L-1 or `ignore_index`.
        f: of log p, a tensor of any shape; element by element, differentiable.
        ignore_index: label of the pixels of loss 0.
        weights: w of each class, (L,), or of each class in each image, (B, L); None for 1.
        adjust: z(x, label), of logits (b, L, n) and true classes (b, n) (class 0 at ignored
            pixels), any part of the batch; None for z = x.
        scale: ∂z_l / ∂x_l, the same for all.
        total_of: g; None for 0.

    Returns:
        loss (B, *spatial), differentiable; total, a number without gradient. Both float32, or
        float64 for float64 logits.
    """
    if weights is not None:
        weights = weights.to(logits.device, computed_in(logits)).expand(logits.shape[:2])
    # One axis of pixels: (B, L, P) and (B, P).
    pixels = math.prod(target.shape[1:])
    x = logits.reshape(*logits.shape[:2], pixels)
    label = target.reshape(len(target), pixels)
    compute = composed if torch.compiler.is_compiling() else implementation(logits.device.type)
    loss, total = compute(x, label, f, ignore_index, weights, adjust, scale, total_of)
    return loss.reshape(target.shape), total


def implementation(device_type: str):
    """How `pixel_loss` computes outside of `torch.compile`."""
    return {"cpu": _InChunks.apply, "cuda": compiled}.get(device_type, composed)


def composed(x, target, f, ignore_index, weights, adjust, scale, total_of):
    """`pixel_loss` in plain PyTorch: what is compiled, and what the others must equal."""
    valid = target != ignore_index
    label = target.where(valid, 0)
    z = x.to(computed_in(x))
    if adjust:
        z = adjust(z, label)  # contains scale
    log_p = true_class_log_prob(z, target, ignore_index)
    w = _weight(weights, label, valid, log_p.dtype)
    total = (w * total_of(log_p.detach())).sum() if total_of else w.new_zeros(())
    return w * f(log_p), total


def _weight(weights, label, valid, dtype) -> Tensor:
    """w of each pixel, (b, n); 0 at ignored ones."""
    if weights is None:
        return valid.to(dtype)
    return weights.gather(1, label) * valid


@functools.cache
def _compiler():
    # Not before it is needed: asking for the compiler takes seconds.
    return torch.compile(composed)


_cannot_compile = False


def compiled(*args):
    """`composed`, compiled for the device of the logits; as it is where that is not possible."""
    global _cannot_compile
    if not _cannot_compile:
        try:
            return _compiler()(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            _cannot_compile = True
            warnings.warn(
                "torch.compile failed, the losses of patlib take more time and memory without "
                f"it: {error}",
                stacklevel=2,
            )
    return composed(*args)


class _InChunks(torch.autograd.Function):
    """`pixel_loss` on a CPU: part by part, each small enough for the cache.

    With u the gradient that arrives at a pixel's loss, the one that leaves for its logits is

        ∂/∂x_l = u · w f'(log p) · ([l = y] - p_l) · scale,

    so of the forward pass only w f', one number a pixel, is kept. The softmax is made again.
    """

    @staticmethod
    def forward(ctx, x, target, f, ignore_index, weights, adjust, scale, total_of):
        ctx.arguments = (f, ignore_index, weights, adjust, scale, total_of)
        dtype = computed_in(x)
        loss = torch.empty(target.shape, dtype=dtype)
        slope = torch.empty_like(loss) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=dtype)
        for images, pixels in _chunks(x):
            z, label, valid = _chunk(x, target, images, pixels, ignore_index, adjust)
            log_p = z.log_softmax(1).gather(1, label.unsqueeze(1)).squeeze(1)
            log_p.masked_fill_(~valid, 0)
            w = _weight(None if weights is None else weights[images], label, valid, dtype)
            if total_of:
                total += (w * total_of(log_p)).sum()
            with torch.set_grad_enabled(slope is not None):
                value = f(log_p.requires_grad_(slope is not None))
            if slope is not None:
                (derivative,) = torch.autograd.grad(value, log_p, torch.ones_like(value))
                torch.mul(w, derivative, out=slope[images, pixels])
            torch.mul(w, value.detach(), out=loss[images, pixels])
        ctx.save_for_backward(x, target, slope)
        ctx.mark_non_differentiable(total)
        return loss, total

    @staticmethod
    def backward(ctx, u, _):
        x, target, slope = ctx.saved_tensors
        f, ignore_index, weights, adjust, scale, total_of = ctx.arguments
        if torch.is_grad_enabled():  # create_graph=True: a gradient that has a gradient
            loss, _ = composed(x, target, *ctx.arguments)
            (grad,) = torch.autograd.grad(loss, x, u, create_graph=True)
            return grad, *(None,) * 7
        grad = torch.empty_like(x)
        for images, pixels in _chunks(x):
            z, label, _ = _chunk(x, target, images, pixels, ignore_index, adjust)
            p_minus_true = z.softmax(1)
            minus_one = p_minus_true.new_full((), -1).expand(label.unsqueeze(1).shape)
            p_minus_true.scatter_add_(1, label.unsqueeze(1), minus_one)
            factor = -scale * u[images, pixels] * slope[images, pixels]
            torch.mul(p_minus_true, factor.unsqueeze(1), out=grad[images, :, pixels])
        return grad, *(None,) * 7


def _chunks(x: Tensor):
    """Slices of images and of pixels that divide logits (B, L, P) into parts of about CHUNK."""
    num_images, num_classes, num_pixels = x.shape
    most = max(CHUNK // num_classes, 1)  # pixels
    images = max(most // max(num_pixels, 1), 1)
    parts = max(math.ceil(num_pixels / most), 1)
    pixels = max(math.ceil(num_pixels / parts), 1)
    for i in range(0, num_images, images):
        for j in range(0, num_pixels, pixels):
            yield slice(i, i + images), slice(j, j + pixels)


def _chunk(x, target, images, pixels, ignore_index, adjust):
    """Adjusted logits (b, L, n), true classes (b, n) and valid pixels (b, n) of a part."""
    part = target[images, pixels]
    valid = part != ignore_index
    label = part.where(valid, 0)
    z = x[images, :, pixels].to(computed_in(x))
    return adjust(z, label) if adjust else z, label, valid


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
