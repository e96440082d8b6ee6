"""The formula that the losses share, in plain PyTorch, their reduction, and their Module.

Every loss of this package has the same form. From the logits x (B, L, *spatial) it takes, for each
pixel, the log-probability of its true class y under a softmax of adjusted logits z = z(x),

    log p = z_y - log Σ_l exp(z_l),

and weighs a function f of that one number: the loss of the pixel is w · f(log p), with w a
constant of the pixel's class, or of its class in its image. Each loss file defines z, w and f;
`composed` is the formula, `_fused.pixel_loss` computes it with less time and memory, and `reduce`
reduces it.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patlib.checks import check_choice, check_integer, check_number

from ._checks import REDUCTIONS, Labels, check_class_sizes, check_ignore_index

# f: log p to (f, derivative of f). z: (logits, classes) to adjusted logits. g: log p to a number.
Pointwise = Callable[[Tensor], tuple[Tensor, Tensor]]
Adjust = Callable[[Tensor, Tensor], Tensor]
TotalOf = Callable[[Tensor], Tensor]


def composed(
    x: Tensor,
    target: Tensor,
    f: Pointwise,
    ignored: int,
    table: Tensor,
    adjust: Adjust | None,
    scale: float,
    total_of: TotalOf | None,
) -> tuple[Tensor, Tensor]:
    """`pixel_loss` in plain PyTorch: what is compiled, and what the fused path must equal."""
    z = x.to(computed_in(x))
    if adjust is not None:
        z = adjust(z, target.clamp_max(x.shape[1] - 1))  # includes scale
    log_p = true_class_log_prob(z, target, ignored)
    w = table.gather(1, target)
    total = (w * total_of(log_p.detach())).sum() if total_of is not None else w.new_zeros(())
    return w * f(log_p)[0], total


def computed_in(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits; float32 for all others, so for half and bfloat16."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def true_class_log_prob(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """log softmax(logits) of each pixel's true class, (B, *spatial); 0 at ignored pixels.

    Differentiable in `logits`; no gradient reaches them from an ignored pixel.
    """
    if not torch.compiler.is_compiling():
        return -F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    # A comparison fuses with the softmax around it, forward and backward; the gradient of a gather
    # would need one more tensor, of zeros to scatter into.
    true = is_true_class(logits, target) & (target != ignore_index).unsqueeze(1)
    return F.log_softmax(logits, 1).where(true, 0).sum(1)


def is_true_class(logits: Tensor, label: Tensor) -> Tensor:
    """True (B, L, *spatial) at each pixel's true class."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    return label.unsqueeze(1) == per_channel(classes, logits)


def per_channel(constant: Tensor, logits: Tensor) -> Tensor:
    """A constant of each class (L,), shaped to broadcast over logits (B, L, *spatial)."""
    return constant.reshape(-1, *(1 for _ in logits.shape[2:]))


def smallest_log(dtype: torch.dtype) -> float:
    """Logarithm of the smallest normal number: below, p has lost digits or is 0."""
    return math.log(torch.finfo(dtype).tiny)


def cross_entropy(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """-log p and its derivative: the f of the losses that change z or w only."""
    return -log_p, log_p.new_full((), -1)


def reduce(loss: Tensor, logits: Tensor, labels: Labels, reduction: str) -> Tensor:
    """Reduce per-pixel losses (0 at ignored pixels); the mean is over the valid pixels.

    Without a valid pixel it is 0, still connected to the logits, so that backward() works.
    """
    if reduction == "none":
        return loss if loss.dtype == computed_in(logits) else fitted(loss, computed_in(logits))
    if reduction == "sum":
        return sum_of(loss, logits)
    return sum_of(loss, logits, labels.num_valid().clamp_min(1))


def sum_of(loss: Tensor, logits: Tensor, divisor: Tensor | int | None = None) -> Tensor:
    """Σ loss, or Σ loss / divisor, in the type that the losses of these logits have."""
    if loss.dtype != torch.float64 or torch.compiler.is_compiling():
        return loss.sum() if divisor is None else loss.sum() / divisor
    # Pixel by pixel: the sum of the largest losses may not fit float64 where their mean does.
    value = loss.sum() if divisor is None else (loss / divisor).sum()
    return fitted(value, computed_in(logits), loss.isfinite().all())


def fitted(x: Tensor, dtype: torch.dtype, finite: Tensor | None = None) -> Tensor:
    """x in another type; what is finite but too large for it is its largest number.

    The gradient is that of x. `finite` is True where an infinite x is so by rounding only.
    """
    return _Fitted.apply(x, dtype, x.isfinite() if finite is None else finite)


class _Fitted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, finite: Tensor) -> Tensor:
        largest = torch.finfo(dtype).max
        return x.clamp(-largest, largest).where(finite, x).to(dtype)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None]:
        return u, None, None


class SegmentationLoss(nn.Module):
    """Base of the Modules of this package: `num_classes`, `ignore_index`, `reduction`.

    A loss keeps its constants of the classes as buffers that are not in its `state_dict`: they are
    made from the class counts when it is built, and loading a state does not change them.

    Args:
        num_classes: L; if given, logits of another number of channels are refused.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean", "sum" or "none"; each loss says what the mean divides by.

    Attributes:
        label: name in tables and figures.
        color: of its marks in figures.
        marker: of matplotlib.
        logit_scale: s, if the loss takes the softmax of s · logits; 1 otherwise.
    """

    label: ClassVar[str]
    color: ClassVar[str]
    marker: ClassVar[str]

    @property
    def logit_scale(self) -> float:
        return 1.0

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if num_classes is not None:
            num_classes = check_integer("num_classes", num_classes, minimum=1)
            check_ignore_index(ignore_index, num_classes)
        if ignore_index is not None:
            ignore_index = check_integer("ignore_index", ignore_index)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)

    def class_prior(self, class_sizes: Tensor) -> Tensor | None:
        """The class prior under which the loss trains: float64 (L,) on the CPU, summing to 1.

        It is softmax(logit_scale · x) for the logits x that minimise the loss over the training
        set where the images tell nothing: the same L logits for every pixel. The training set
        counts as one batch, or as batches with equally many valid pixels. A class without pixels
        has prior 0. Only the ratios matter to a shift of the logits from one prior to another,

            labels = argmax_c ( logit_scale · x_c - κ (log q_c - log π_c) ),

        with q this prior and π the shares of the training pixels: κ = 1 undoes the loss's prior.

        Args:
            class_sizes: valid pixels of each class in each training image, (N, L), as
                `patlib.data.class_sizes(dataset)` gives them.

        Returns:
            None for losses that have no such prior, because they are no sum over pixels.

        Raises:
            ValueError: class_sizes are not as said.
        """
        return self._prior(check_class_sizes(class_sizes, self.num_classes))

    def _prior(self, class_sizes: Tensor) -> Tensor | None:
        raise NotImplementedError

    @property
    def __name__(self) -> str:
        # segmentation_models_pytorch's TrainEpoch logs a loss under this name.
        return type(self).__name__

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # A constant of each class follows .to(device), but stays float64 when the model around it
        # is turned into half or bfloat16, where log(10**7) is off by 0.06. (MPS has no float64.)
        for module in self.children():
            module._apply(fn)
        for name, constant in list(self.named_buffers(recurse=False)):
            device = fn(constant.float()).device
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._buffers[name] = constant.to(device, dtype)
        return self

    def extra_repr(self) -> str:
        shown = ((k, v) for k, v in vars(self).items() if k[0] != "_" and k != "training")
        return ", ".join(f"{name}={value!r}" for name, value in shown)


class DeferredLoss(SegmentationLoss):
    """Base of the losses that become another one when a share of the training is done.

    Attributes:
        deferred: that share, > 0 and < 1; None for never.
        progress: share of the training that is done, in [0, 1]; 0 when the loss is built.
    """

    def __init__(self, *, deferred: float | None, **options: Any) -> None:
        super().__init__(**options)
        if deferred is not None:
            deferred = check_number("deferred", deferred, above=0, below=1)
        self.deferred = deferred
        self._progress = 0.0

    @property
    def progress(self) -> float:
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress = check_number("progress", value, minimum=0, maximum=1)

    @property
    def is_deferred(self) -> bool:
        """Whether the share that the loss waits for is not done."""
        return self.deferred is not None and self._progress < self.deferred
