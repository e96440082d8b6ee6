"""Label-distribution-aware margin loss."""

from typing import ClassVar

import torch
from torch import Tensor

from patlib.checks import check_number

from ._checks import ClassCounts, check_batch, check_class_counts, fill_absent
from ._formula import (
    PixelLoss,
    computed_in,
    cross_entropy,
    is_true_class,
    per_channel,
    reduce,
)
from ._fused import pixel_loss


def ldam_margins(class_counts: ClassCounts, max_margin: float = 0.5) -> Tensor:
    """Margin of each class, Δ_c ∝ n_c^(-1/4), the largest = max_margin: float64 (L,), on the CPU.

    Args:
        class_counts: n_c, valid pixels per class of the training set, (L,). A class of 0 pixels
            is treated as the rarest of the others.
        max_margin: margin of the rarest class, in logits before scaling, >= 0.

    Raises:
        ValueError: counts missing, negative or not finite; max_margin negative or not finite.

    Source: Cao et al., NeurIPS 2019, Eq. (13).
    """
    counts = fill_absent(check_class_counts(class_counts))
    max_margin = check_number("max_margin", max_margin, minimum=0)
    return max_margin * (counts / counts.min()) ** -0.25


def ldam_loss(
    logits: Tensor,
    target: Tensor,
    class_counts: ClassCounts,
    *,
    max_margin: float = 0.5,
    scale: float = 20.0,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Label-distribution-aware margin: cross-entropy of s·(x_c - Δ_c [c = y]), Δ_c ∝ n_c^(-1/4).

    The true class y must win by a margin Δ_y that is larger the fewer pixels n_y the class has in
    the training set; the rarest class has `max_margin`.

    As the PAT paper uses it: without the normalised features and classifier of the original, for
    whose logits in [-1, 1] margin and scale were made, and without its deferred re-weighting.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        class_counts: n_c, valid pixels per class of the training set, (L,). A class of 0 pixels
            is treated as the rarest of the others. In a training loop use the Module, which makes
            the margins only once.
        max_margin: largest margin, in logits before scaling, >= 0.
        scale: s > 0, multiplies all logits after the margin.
        ignore_index: label of the pixels to leave out; None to leave out none.
        reduction: "mean" over the valid pixels of the batch (0 if it has none), their "sum", or
            "none": one value a pixel, `(B, *spatial)`, 0 at ignored ones.

    Raises:
        ValueError: counts missing, negative, not finite or not L; max_margin negative, scale not
            positive, either not finite; shapes, types or labels other than these.

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
    NeurIPS 2019, Eq. (10) and (13).
    """
    loss = LDAMLoss(
        class_counts,
        max_margin=max_margin,
        scale=scale,
        ignore_index=ignore_index,
        reduction=reduction,
    )
    return loss(logits, target)


class LDAMLoss(PixelLoss):
    """Label-distribution-aware margin loss as a Module: see `ldam_loss`.

    >>> import torch
    >>> from patlib.losses import LDAMLoss
    >>> logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    >>> target = torch.tensor([[[0, 1]]])
    >>> loss = LDAMLoss(class_counts=[160_000, 10_000], max_margin=0.5, scale=20.0)
    >>> loss.margins.tolist()
    [0.25, 0.5]
    >>> round(loss(logits, target).item(), 4)  # about scale x mean margin
    7.5034
    """

    label: ClassVar[str] = "LDAM"
    color: ClassVar[str] = "#ddaa33"
    marker: ClassVar[str] = "P"

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        max_margin: float = 0.5,
        scale: float = 20.0,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        margins = ldam_margins(class_counts, max_margin)
        super().__init__(num_classes=len(margins), ignore_index=ignore_index, reduction=reduction)
        self.max_margin = max_margin
        self.scale = check_number("scale", scale, above=0)
        self.register_buffer("margins", margins, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        labels = check_batch(logits, target, self.ignore_index, self.reduction, self.num_classes)
        scale = self.scale
        shifts = (-scale * self.margins).to(logits.device, computed_in(logits))  # -s Δ

        def with_margin(x: Tensor, label: Tensor) -> Tensor:
            # z_y = s (x_y - Δ_y) for the true class, z_c = s x_c for the others.
            if torch.compiler.is_compiling():  # as in true_class_log_prob: a comparison fuses
                return scale * x + per_channel(shifts, x).where(is_true_class(x, label), 0)
            shift = shifts.expand(len(label), -1).gather(1, label)
            return (scale * x).scatter_add_(1, label.unsqueeze(1), shift.unsqueeze(1))

        loss, _ = pixel_loss(logits, labels, cross_entropy, adjust=with_margin, scale=scale)
        return reduce(loss, labels, self.reduction)
