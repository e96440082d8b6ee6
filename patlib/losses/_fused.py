"""The formula of `_formula` with less time and memory: in chunks on a CPU, compiled on a GPU."""

import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ._checks import Labels
from ._formula import Adjust, Pointwise, TotalOf, composed, computed_in, fitted, smallest_log

# Logits of a chunk, so that they and the intermediate results stay in the cache of a CPU: 4 MiB in
# float32.
CHUNK = 2**20


def pixel_loss(
    logits: Tensor,
    labels: Labels,
    f: Pointwise,
    *,
    weights: Tensor | None = None,
    adjust: Adjust | None = None,
    scale: float = 1.0,
    total_of: TotalOf | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss w · f(log p) of each pixel, and Σ w · g(log p) over all of them.

    Computed by `_InChunks` on a CPU, by `torch.compile` of `composed` on a GPU, and by `composed`
    itself inside a user's `torch.compile` and on other devices. A gradient of the gradient is
    available where nothing is compiled; `torch.compile` raises a RuntimeError for it.

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
        Both float32, or float64 for float64 logits, and on a CPU where the losses or their sum do
        not fit float32: with finite logits they are finite. NaN where the target is a label below
        `width` that is neither a class nor ignored (see `check_batch`).
    """
    batch, num_classes = logits.shape[:2]
    table = logits.new_full((batch, labels.width), math.nan, dtype=computed_in(logits))
    table[:, :num_classes] = 1 if weights is None else weights
    table[:, labels.ignored] = 0
    x = logits.reshape(batch, num_classes, labels.target.shape[1])
    compute = composed if torch.compiler.is_compiling() else implementation(logits.device.type)
    arguments = f, labels.ignored, table, adjust, scale, total_of
    loss, total = compute(x, labels.target, *arguments)
    # Elsewhere than on a CPU this look would wait for the device.
    can_look = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if can_look and not loss.detach().sum().isfinite():
        if table.dtype != torch.float64:
            arguments = f, labels.ignored, table.double(), adjust, scale, total_of
            loss, total = compute(x.double(), labels.target, *arguments)
        else:
            loss = fitted(loss, torch.float64, x.isfinite().all(1))
    return loss.reshape(logits.shape[:1] + logits.shape[2:]), total


def implementation(device_type: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """How `pixel_loss` computes outside of `torch.compile`."""
    if device_type == "cpu":
        return _InChunks.apply
    if device_type == "cuda" and os.environ.get("PATLIB_COMPILE") != "0":
        return compiled
    return composed


@functools.cache
def _compiler() -> Callable[..., tuple[Tensor, Tensor]]:
    # Only on demand: importing the compiler takes seconds.
    return torch.compile(composed)


_cannot_compile = False


def compiled(*args: Any) -> tuple[Tensor, Tensor]:
    """`composed`, compiled for the device of the logits; uncompiled where that fails."""
    global _cannot_compile
    if not _cannot_compile:
        try:
            return _compiler()(*args)
        except torch._dynamo.exc.TorchDynamoException as error:
            _cannot_compile = True
            warnings.warn(
                "torch.compile failed; without it the losses of patlib take more time and memory "
                f"(PATLIB_COMPILE=0 switches it off): {error}",
                stacklevel=2,
            )
    return composed(*args)


class _InChunks(torch.autograd.Function):
    """`pixel_loss` on a CPU, in chunks that fit in the cache.

    With u the gradient of a pixel's loss, the gradient of its logits is

        ∂/∂x_l = (p_l - [l = y]) · slope · u,    slope = -w f'(log p) · scale.

    Forward computes all of it but u; backward multiplies by u, in place. The slope, one number a
    pixel, is kept for a second backward pass. Backward computes the softmax again in two cases: in
    half precision, which may not hold the gradient without u; and for scaled logits, whose p is
    often too small to take its logarithm.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        f: Pointwise,
        ignored: int,
        table: Tensor,
        adjust: Adjust | None,
        scale: float,
        total_of: TotalOf | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.arguments = (f, ignored, table, adjust, scale, total_of)
        differentiable = ctx.needs_input_grad[0]
        loss = table.new_empty(target.shape)
        slope = torch.empty_like(loss) if differentiable else None
        ahead = differentiable and x.dtype == table.dtype and scale == 1
        ctx.grad = torch.empty_like(x) if ahead else None
        total, zero = table.new_zeros(2).unbind()
        smallest = smallest_log(table.dtype)
        for images, pixels, true, z, p in _chunks(x, target, adjust, ctx.grad):
            p_flat = p.view(len(p), -1)
            if ahead:
                torch.softmax(z, 1, out=p)
                p_true = p_flat.gather(1, true)
                log_p = p_true.log()
                if not log_p.min() >= smallest:
                    i, j = (~(log_p >= smallest)).nonzero(as_tuple=True)
                    exact = torch.log_softmax(z[i, :, j], 1)
                    log_p[i, j] = exact.gather(1, true[i, j, None] // z.shape[2]).squeeze(1)
            else:
                torch.log_softmax(z, 1, out=p)
                log_p = p_flat.gather(1, true)
            del z  # frees it before the next chunk is made
            column = target[images, pixels]
            # The table makes ignored pixels 0, unless their logits make it 0 · ∞.
            if not log_p.sum().isfinite():
                log_p.masked_fill_(column == ignored, 0)
                finite = x[images, :, pixels].isfinite().all(1)
                value, derivative = f(_within_float64(log_p, finite))
                value = _within_float64(value, finite)
            else:
                value, derivative = f(log_p)
            w = table[images].gather(1, column)
            torch.mul(w, value, out=loss[images, pixels])
            if differentiable:
                torch.addcmul(zero, w, derivative, value=-scale, out=slope[images, pixels])
            if ahead:
                p_flat.scatter_(1, true, p_true.sub_(1))  # p_l - [l = y]
                torch.mul(p, slope[images, None, pixels], out=ctx.grad[images, :, pixels])
            if total_of is not None:
                total += (w * total_of(log_p)).sum()
        ctx.save_for_backward(x, target, slope)
        ctx.mark_non_differentiable(total)
        return loss, total

    @staticmethod
    def backward(ctx: Any, u: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, target, slope = ctx.saved_tensors
        grad, ctx.grad = ctx.grad, None
        u = u.unsqueeze(1)
        if torch.is_grad_enabled():  # create_graph=True: a gradient that has a gradient
            loss, _ = composed(x, target, *ctx.arguments)
            (grad,) = torch.autograd.grad(loss, x, u.squeeze(1), create_graph=True)
        elif grad is not None:
            grad.mul_(u)
        else:
            grad = torch.empty_like(x)
            _, _, _, adjust, _, _ = ctx.arguments
            for images, pixels, true, z, p in _chunks(x, target, adjust, grad):
                torch.softmax(z, 1, out=p)
                del z
                p_flat = p.view(len(p), -1)
                p_flat.scatter_(1, true, p_flat.gather(1, true).sub_(1))  # p_l - [l = y]
                # Rounded as in forward, so that a second backward pass gives the same.
                p.mul_(slope[images, None, pixels])
                torch.mul(p, u[images, :, pixels], out=grad[images, :, pixels])
        return grad, *(None,) * 7


def _within_float64(number: Tensor, finite: Tensor) -> Tensor:
    """Where logits are finite, float64 numbers that overflowed are the largest of float64.

    Numbers of float32 that do are computed again in float64.
    """
    return fitted(number, number.dtype, finite) if number.dtype == torch.float64 else number


def _chunks(
    x: Tensor, target: Tensor, adjust: Adjust | None, grad: Tensor | None
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Walk through logits (B, L, P) and target (B, P), CHUNK logits at a time.

    Yields the slices of images and of pixels; the place of each pixel's true class, (b, n), in the
    L · n probabilities of its image (any at ignored pixels); the adjusted logits z (b, L, n); and
    memory for their softmax: the part of `grad` if that is contiguous and of the same type, else a
    buffer that is reused, because reallocation is slower.
    """
    num_images, num_classes, num_pixels = x.shape
    if not x.numel():
        return
    dtype = computed_in(x)
    # Pixels. Besides its logits a pixel has some ten intermediate results.
    most = max(CHUNK // max(num_classes, 16), 1)
    pixels = math.ceil(num_pixels / math.ceil(num_pixels / most))
    in_grad = grad is not None and grad.dtype == dtype and grad.is_contiguous()
    in_grad = in_grad and pixels == num_pixels
    # At most half of the batch: or the intermediate results of a small one would need more memory
    # than F.cross_entropy does.
    images = max(min(most // num_pixels, num_images // 2), 1)
    buffer = None if in_grad else x.new_empty(images * num_classes * pixels, dtype=dtype)
    copy = None
    positions = torch.arange(pixels)
    for i in range(0, num_images, images):
        for j in range(0, num_pixels, pixels):
            part = slice(i, i + images), slice(j, j + pixels)
            label = target[part].clamp_max(num_classes - 1)
            n = label.shape[1]
            true = torch.add(positions[:n], label, alpha=n)
            z = x[part[0], :, part[1]]
            if adjust is not None:
                z = adjust(z.to(dtype), label)
            elif z.dtype != dtype or not z.is_contiguous():
                copy = (
                    x.new_empty(images * num_classes * pixels, dtype=dtype)
                    if copy is None
                    else copy
                )
                z = copy[: z.numel()].view(z.shape).copy_(z)
            p = grad[part[0]] if in_grad else buffer[: z.numel()].view(z.shape)
            yield *part, true, z, p
