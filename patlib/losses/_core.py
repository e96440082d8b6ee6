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
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

REDUCTIONS = ("mean", "sum", "none")
# Logits that are worked on at a time on a CPU, so that they and what is made of them stay in its
# cache: 4 MiB in float32.
CHUNK = 2**20
# Columns that a table of constants may have for the sake of `ignore_index`.
WIDEST = 256


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


def check_tensors(logits, target):
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a torch.Tensor, got {type(value)}")


def check_channels(logits, num_classes):
    """ValueError unless logits (B, L, *spatial) have `num_classes` channels."""
    if logits.ndim > 1 and logits.shape[1] != num_classes:
        raise ValueError(
            f"this loss is for {num_classes} classes, so logits (B, {num_classes}, *spatial), "
            f"got {logits.shape[1]} channels in logits of shape {tuple(logits.shape)}"
        )


class Labels(NamedTuple):
    """The target of a batch as columns of a table of constants: see `check_batch`.

    Attributes:
        target: (B, P), int64; P = H · W or whatever the spatial axes hold.
        ignored: the column of the ignored pixels; may be one of the classes.
        width: number of columns. Neither a class nor `ignored` are at most unused.
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
        counts = _count(self.target, self.width) if self.counts is None else self.counts
        sizes = counts[:, : self.num_classes].clone()
        sizes[:, self.ignored : self.ignored + 1] = 0
        return sizes

    def num_valid(self) -> Tensor:
        # Counted in int64: a float32 sum of ones stops at 2**24 pixels.
        if self.counts is None:
            return (self.target != self.ignored).sum()
        return self.target.numel() - self.counts[:, self.ignored].sum()


def _count(columns: Tensor, width: int) -> Tensor:
    """How often each of `width` numbers occurs in the rows of an int64 (B, P); int64 (B, width)."""
    counts = columns.new_zeros(len(columns), width)
    return counts.scatter_add_(1, columns, columns.new_ones(()).expand(columns.shape))


def check_batch(logits, target, ignore_index, reduction, num_classes=None) -> Labels:
    """Check what a loss was called with; return its labels.

    Raises ValueError for logits that are not floating (B, L, *spatial) or whose L is not
    `num_classes`, a target that is not int64 (B, *spatial) and, where looking costs no wait for a
    device, for a label that is no class.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_integer("ignore_index", ignore_index)
    check_tensors(logits, target)
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
    num_classes = logits.shape[1]
    columns = target.reshape(len(target), math.prod(target.shape[1:]))
    ignored, width = ignore_index, max(num_classes, ignore_index + 1)
    if not 0 <= ignored < max(num_classes, WIDEST):
        # The column after the classes; a wrong label must not land there too.
        wrong = columns.where(columns != num_classes, num_classes + 1)
        columns = torch.where(columns == ignored, num_classes, wrong)
        ignored, width = num_classes, num_classes + 1
    counts = None
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        # One pass over the labels finds the wrong ones, counts the valid ones, and each class.
        try:
            counts = _count(columns, width)
            known = counts[:, :num_classes].sum() + counts[:, num_classes:][:, -1:].sum()
        except RuntimeError:  # of scatter_add_: no such column
            known = None
        if known != columns.numel():
            valid = target != ignore_index
            wrong = valid & ((target < 0) | (target >= num_classes))
            raise ValueError(
                f"target must be in 0 ... {num_classes - 1} or ignore_index={ignore_index}, "
                f"got {target[wrong][0].item()}"
            )
    return Labels(columns, int(ignored), width, num_classes, counts)


def computed_in(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits; float32 for all others, so for half and bfloat16."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def prepare(logits, target, ignore_index, reduction, num_classes=None) -> tuple[Tensor, Tensor]:
    """`check_batch`; return the logits in the type to compute in, and the valid pixels."""
    check_batch(logits, target, ignore_index, reduction, num_classes)
    return logits.to(computed_in(logits)), target != ignore_index


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
    labels: Labels,
    f: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    weights: Tensor | None = None,
    adjust: Callable[[Tensor, Tensor], Tensor] | None = None,
    scale: float = 1.0,
    total_of: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss w · f(log p) of each pixel, and Σ w · g(log p) over all of them.

    Of large logits it costs less time and memory than `F.cross_entropy`: on a CPU by `_InChunks`,
    on a GPU by what `torch.compile` makes of `composed`, inside of a user's `torch.compile` by
    `composed` itself. A gradient of the gradient can be had where nothing is compiled;
    `torch.compile` raises a RuntimeError that says so.

    Args:
        logits: x (B, L, *spatial), floating.
        labels: what `check_batch` returned.
        f: of log p, a tensor of any shape: returns f, differentiable, and its derivative.
        weights: w of each class, (L,), or of each class in each image, (B, L); None for 1.
        adjust: z(x, label), of logits (b, L, n) and classes (b, n), any part of the batch, with
            any class at ignored pixels; differentiable. None for z = x.
        scale: ∂z_l / ∂x_l, the same for all.
        total_of: g; None for 0.

    Returns:
        loss (B, *spatial), differentiable, 0 at ignored pixels; total, a number without gradient.
        Both float32, or float64 for float64 logits.
    """
    batch, num_classes = logits.shape[:2]
    table = logits.new_zeros(batch, labels.width, dtype=computed_in(logits))
    table[:, :num_classes] = 1 if weights is None else weights
    table[:, labels.ignored] = 0
    x = logits.reshape(batch, num_classes, labels.target.shape[1])
    compute = composed if torch.compiler.is_compiling() else implementation(logits.device.type)
    loss, total = compute(x, labels.target, f, labels.ignored, table, adjust, scale, total_of)
    return loss.reshape(logits.shape[:1] + logits.shape[2:]), total


def implementation(device_type: str):
    """How `pixel_loss` computes outside of `torch.compile`."""
    return {"cpu": _InChunks.apply, "cuda": compiled}.get(device_type, composed)


def composed(x, target, f, ignored, table, adjust, scale, total_of):
    """`pixel_loss` in plain PyTorch: what is compiled, and what the others must equal."""
    z = x.to(computed_in(x))
    if adjust:
        z = adjust(z, target.clamp_max(x.shape[1] - 1))  # scale is in there
    log_p = true_class_log_prob(z, target, ignored)
    w = table.gather(1, target)
    total = (w * total_of(log_p.detach())).sum() if total_of else w.new_zeros(())
    return w * f(log_p)[0], total


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
                "torch.compile failed; without it the losses of patlib take more time and memory: "
                f"{error}",
                stacklevel=2,
            )
    return composed(*args)


class _InChunks(torch.autograd.Function):
    """`pixel_loss` on a CPU: part by part, each small enough for the cache.

    With u the gradient that arrives at a pixel's loss, the one that leaves for its logits is

        ∂/∂x_l = (p_l - [l = y]) · slope · u,    slope = -w f'(log p) · scale.

    All of it but u is known in the forward pass, where p is at hand: so it is made there, and the
    backward pass multiplies it by u, in place. The slope, one number a pixel, is kept to make it
    again for a second backward pass. In three cases it is made in the backward pass only: in half
    precision, which might not hold it without u; of scaled logits, whose p often is too small a
    number for the logarithm that is needed too; and of a batch that is hardly larger than a part,
    where all there is at once would take more memory than `F.cross_entropy`.
    """

    @staticmethod
    def forward(ctx, x, target, f, ignored, table, adjust, scale, total_of):
        ctx.arguments = (f, ignored, table, adjust, scale, total_of)
        differentiable = ctx.needs_input_grad[0]
        loss = table.new_empty(target.shape)
        slope = torch.empty_like(loss) if differentiable else None
        ahead = x.dtype == table.dtype and scale == 1 and x.numel() > CHUNK
        ctx.grad = torch.empty_like(x) if differentiable and ahead else None
        total, zero, minus_one = table.new_tensor([0, 0, -1]).unbind()
        smallest = math.log(torch.finfo(table.dtype).tiny)
        for images, pixels, label, z, p in _chunks(x, target, adjust):
            true = label.unsqueeze(1)
            if ctx.grad is None:
                log_p = torch.log_softmax(z, 1, out=p).gather(1, true).squeeze(1)
            else:
                log_p = torch.softmax(z, 1, out=p).gather(1, true).log_().squeeze(1)
                # Where p is no normal number (or none at all), its logarithm has lost digits.
                if not log_p.min() >= smallest:
                    i, j = (~(log_p >= smallest)).nonzero(as_tuple=True)
                    exact = torch.log_softmax(z[i, :, j], 1)
                    log_p[i, j] = exact.gather(1, label[i, j, None]).squeeze(1)
            del z  # or there is one too many while the next is made
            # The table makes ignored pixels 0, unless their logits make it 0 · ∞.
            if not log_p.sum().isfinite():
                log_p.masked_fill_(target[images, pixels] == ignored, 0)
            value, derivative = f(log_p)
            w = table[images].gather(1, target[images, pixels])
            torch.mul(w, value, out=loss[images, pixels])
            if slope is not None:
                torch.addcmul(zero, w, derivative, value=-scale, out=slope[images, pixels])
            if ctx.grad is not None:
                p.scatter_add_(1, true, minus_one.expand(true.shape))  # p_l - [l = y]
                torch.mul(p, slope[images, None, pixels], out=ctx.grad[images, :, pixels])
            if total_of:
                total += (w * total_of(log_p)).sum()
        ctx.save_for_backward(x, target, slope)
        ctx.mark_non_differentiable(total)
        return loss, total

    @staticmethod
    def backward(ctx, u, _):
        x, target, slope = ctx.saved_tensors
        grad, ctx.grad = ctx.grad, None
        u = u.unsqueeze(1)
        if torch.is_grad_enabled():  # create_graph=True: a gradient that has a gradient
            loss, _ = composed(x, target, *ctx.arguments)
            (grad,) = torch.autograd.grad(loss, x, u.squeeze(1), create_graph=True)
        elif grad is not None:
            grad.mul_(u)
        else:
            grad, minus_one = torch.empty_like(x), slope.new_full((), -1)
            _, _, _, adjust, _, _ = ctx.arguments
            for images, pixels, label, z, p in _chunks(x, target, adjust):
                true = label.unsqueeze(1)
                torch.softmax(z, 1, out=p).scatter_add_(1, true, minus_one.expand(true.shape))
                del z
                factor = slope[images, None, pixels] * u[images, :, pixels]
                torch.mul(p, factor, out=grad[images, :, pixels])
        return grad, *(None,) * 7


def _chunks(x, target, adjust):
    """Walk through logits (B, L, P) and target (B, P), CHUNK logits at a time.

    Yields the slices of images and of pixels, the classes (b, n), any at ignored pixels, the
    adjusted logits z (b, L, n), and memory for their softmax, the same for all parts. (Asked for
    anew each time, it may each time come from the system, which takes longer than to compute what
    is put there.)
    """
    num_images, num_classes, num_pixels = x.shape
    if not x.numel():
        return
    dtype = computed_in(x)
    most = max(CHUNK // num_classes, 1)  # pixels
    # At most half of the batch: of a small one all that is made on the way would need more memory
    # than the logits.
    images = max(min(most // num_pixels, num_images // 2), 1)
    pixels = math.ceil(num_pixels / math.ceil(num_pixels / most))
    result = x.new_empty(images * num_classes * pixels, dtype=dtype)
    copy = None
    for i in range(0, num_images, images):
        for j in range(0, num_pixels, pixels):
            part = slice(i, i + images), slice(j, j + pixels)
            label = target[part].clamp_max(num_classes - 1)
            z = x[part[0], :, part[1]]
            if adjust:
                z = adjust(z.to(dtype), label)
            elif z.dtype != dtype or not z.is_contiguous():
                copy = torch.empty_like(result) if copy is None else copy
                z = copy[: z.numel()].view(z.shape).copy_(z)
            yield *part, label, z, result[: z.numel()].view(z.shape)


def reduce(loss: Tensor, labels: Labels, reduction: str) -> Tensor:
    """Reduce per-pixel losses (0 at ignored pixels); the mean is over the valid pixels.

    No valid pixel gives 0, still connected to the logits, so that backward() works.
    """
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / labels.num_valid().clamp_min(1)


def cross_entropy(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """-log p and its derivative: the f of the losses that change z or w only."""
    return -log_p, log_p.new_full((), -1)


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
        if self.num_classes is not None and isinstance(logits, Tensor):
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
