"""Label-distribution-aware margin loss."""

import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from patlib.checks import check_number

from ._checks import MOST, ClassCounts, check_batch, check_class_counts, fill_absent
from ._formula import (
    DeferredLoss,
    computed_in,
    cross_entropy,
    is_true_class,
    per_channel,
    reduce,
)
from ._fused import pixel_loss
from ._prior import normalised, softmax_prior
from .cb import cb_weights
from .class_weights import weights_of_call, with_weights


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
    max_margin = check_number("max_margin", max_margin, minimum=0, maximum=MOST)
    return max_margin * (counts / counts.min()) ** -0.25


def ldam_loss(
    logits: Tensor,
    target: Tensor,
    class_counts: ClassCounts,
    *,
    max_margin: float = 0.5,
    scale: float = 20.0,
    class_weights: Sequence[float] | Tensor | None = None,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """Label-distribution-aware margin: cross-entropy of s·(x_c - Δ_c [c = y]), Δ_c ∝ n_c^(-1/4).

    The true class y must win by a margin Δ_y that is larger the fewer pixels n_y the class has in
    the training set; the rarest class has `max_margin`.

    The defaults are the bare form of the PAT paper. Margin and scale were made for logits in
    [-1, 1]: the authors of LDAM take s = 30, a normalised classifier (`normalized_classifier=True`
    of the networks), and deferred re-weighting (`deferred` of the Module).

    Of a batch in parts, as in gradient accumulation and in several processes, the mean is that of
    the parts' means, each weighted with its share of the valid pixels.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        class_counts: n_c, valid pixels per class of the training set, (L,). A class of 0 pixels
            is treated as the rarest of the others. In a training loop use the Module, which makes
            the margins only once.
        max_margin: largest margin, in logits before scaling, >= 0.
        scale: s > 0, multiplies all logits after the margin.
        class_weights: (L,), finite, >= 0, multiply the losses of the pixels of each class; None
            for 1. The Module makes those of deferred re-weighting.
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
    return loss.weighted(logits, target, class_weights)


class LDAMLoss(DeferredLoss):
    """Label-distribution-aware margin loss as a Module: see `ldam_loss`.

    Deferred re-weighting (DRW): when `progress` has reached `deferred`, the loss of each pixel is
    multiplied by the weight of its class, in the ratios of `cb_weights` and scaled so that the mean
    weight of a training pixel is 1, so that the size of the loss stays. (The authors divide by the
    sum of the weights of the batch, of which this is the expectation; they start after 0.8 of the
    training.) `patlib.training` sets `progress`; in a loop of your own, set it before each epoch.

    Args:
        class_counts, max_margin, scale, ignore_index, reduction: see `ldam_loss`.
        deferred: share of the training, > 0 and < 1, after which classes are weighted; None for
            never.

    Attributes:
        progress: share of the training that is done, in [0, 1]; 0 when the loss is built.

    >>> import torch
    >>> from patlib.losses import LDAMLoss
    >>> logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    >>> target = torch.tensor([[[0, 1]]])
    >>> loss = LDAMLoss(class_counts=[160_000, 10_000], max_margin=0.5, scale=20.0)
    >>> loss.margins.tolist()
    [0.25, 0.5]
    >>> round(loss(logits, target).item(), 4)  # about scale x mean margin
    7.5034
    >>> loss = LDAMLoss(class_counts=[90, 10], deferred=0.8)
    >>> loss.progress = 0.8
    >>> [round(w, 3) for w in loss.current_weights().tolist()]
    [0.657, 4.089]
    """

    label: ClassVar[str] = "LDAM"
    color: ClassVar[str] = "#eebb22"
    marker: ClassVar[str] = "P"

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        max_margin: float = 0.5,
        scale: float = 20.0,
        deferred: float | None = None,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        margins = ldam_margins(class_counts, max_margin)
        super().__init__(
            deferred=deferred,
            num_classes=len(margins),
            ignore_index=ignore_index,
            reduction=reduction,
        )
        self.max_margin = max_margin
        self.scale = check_number("scale", scale, above=0, maximum=MOST)
        weights = None
        if deferred is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of absent classes, which the margins warned of
                weights = cb_weights(class_counts)
            counts = check_class_counts(class_counts)
            weights = weights * counts.sum() / (weights * counts).sum()
        self.register_buffer("margins", margins, persistent=False)
        self.register_buffer("deferred_weights", weights, persistent=False)

    @property
    def logit_scale(self) -> float:
        return self.scale

    def current_weights(self) -> Tensor | None:
        """The weights of the classes at this `progress`, float64 (L,); None before `deferred`."""
        return None if self.is_deferred else self.deferred_weights

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.weighted(logits, target, self.current_weights())

    def weighted(
        self, logits: Tensor, target: Tensor, class_weights: Sequence[float] | Tensor | None
    ) -> Tensor:
        """The loss under these weights of the classes, (L,), whatever the progress."""
        labels = check_batch(logits, target, self.ignore_index, self.reduction, self.num_classes)
        weights = weights_of_call(class_weights, labels.num_classes)
        scale = self.scale
        shifts, margins = (
            constant.to(logits.device, computed_in(logits))
            for constant in (-scale * self.margins, self.margins)
        )

        def with_margin(x: Tensor, label: Tensor) -> Tensor:
            # z_y = s (x_y - Δ_y) for the true class, z_c = s x_c for the others.
            if x.device.type == "cpu" and logits.dtype != torch.float64:
                # Where s x does not fit float32, `pixel_loss` takes float64.
                if not torch.compiler.is_compiling():
                    shift = shifts.to(x).expand(len(label), -1).gather(1, label)
                    return (scale * x).scatter_add_(1, label.unsqueeze(1), shift.unsqueeze(1))
            # As in true_class_log_prob, a comparison fuses. Without its maximum, which softmax
            # takes off again, s x is not ∞ - ∞.
            z = x - per_channel(margins, x).where(is_true_class(x, label), 0)
            return scale * (z - z.detach().amax(1, keepdim=True))

        loss, _ = pixel_loss(
            logits, labels, cross_entropy, weights=weights, adjust=with_margin, scale=scale
        )
        return reduce(loss, logits, labels, self.reduction)

    def _prior(self, class_sizes: Tensor) -> Tensor:
        # At the end of the training: with the deferred weights, if there are any.
        mass = with_weights(class_sizes.sum(0), self.deferred_weights)
        # A row for each true class, whose logit alone is lowered by its margin.
        offsets = torch.diag(-self.scale * self.margins.to(mass))
        return softmax_prior(mass, offsets, normalised(mass))
