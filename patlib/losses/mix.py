"""Weighted sum of losses."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from patlib.checks import check_number

from ._checks import MOST_WEIGHT, ClassCounts
from ._formula import SegmentationLoss, computed_in, fitted

DEFAULT = {"ce": 0.25, "jaccard": 0.75}


def mix_loss(
    logits: Tensor,
    target: Tensor,
    losses: Mapping[str, float] | None = None,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    **given: Any,
) -> Tensor:
    """Weighted sum of losses: Σ_k a_k · loss_k(logits, target).

    The weights are taken as they are. Losses differ in size: PAT with normalize="images" is K times
    cross-entropy where an image has K classes (take normalize="weights"), LDAM `scale` times.

    Of a batch in parts it is what each of its losses is.

    Args:
        logits: `(B, L, *spatial)`, any floating type.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        losses: a_k > 0 by the name of the loss, one of `LOSSES` but "mix"; None for
            0.25 cross-entropy + 0.75 Jaccard, which the authors of JDTLosses recommend.
        params: parameters of the losses, by their names: `{"focal": {"gamma": 1.0}}`.
        given: class_counts, class_images, num_images, ignore_index and reduction, which are those
            of every loss. Losses on regions have the reduction "mean" only.

    Raises:
        ValueError: no loss; an unknown one; a weight that is not a number > 0; parameters of a loss
            that is not in the sum, or that it does not have; what the losses refuse.

    Source: Wang et al., "Jaccard Metric Losses: Optimizing the Jaccard Index with Soft Labels",
    NeurIPS 2023, and the answers in its code, JDTLosses, for cross-entropy with Jaccard.
    """
    return MixLoss(losses, params, num_classes=logits.shape[1], **given)(logits, target)


class MixLoss(SegmentationLoss):
    """Weighted sum of losses as a Module: see `mix_loss`.

    >>> import torch
    >>> from patlib.losses import MixLoss
    >>> logits = torch.zeros(2, 4, 8, 8, requires_grad=True)
    >>> target = torch.randint(4, (2, 8, 8))
    >>> loss = MixLoss({"ce": 1, "focal": 2}, {"focal": {"gamma": 1.0}}, num_classes=4)
    >>> round(loss(logits, target).item(), 4)  # log 4 + 2 · 3/4 log 4
    3.4657
    """

    label: ClassVar[str] = "Mix"
    color: ClassVar[str] = "#661100"
    marker: ClassVar[str] = "d"

    def __init__(
        self,
        losses: Mapping[str, float] | None = None,
        params: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        num_classes: int,
        class_counts: ClassCounts | None = None,
        class_images: ClassCounts | None = None,
        num_images: int | None = None,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        from . import LOSSES, build_loss

        super().__init__(num_classes=num_classes, ignore_index=ignore_index, reduction=reduction)
        losses = DEFAULT if losses is None else losses
        params = {} if params is None else params
        names = [name for name in LOSSES if name != "mix"]
        if not isinstance(losses, Mapping) or not losses or losses.keys() - set(names):
            raise ValueError(
                f"losses must be a number for one or more of {', '.join(map(repr, names))}, such "
                f"as {DEFAULT}, got {losses!r}"
            )
        if not isinstance(params, Mapping) or not all(
            name in losses and isinstance(own, Mapping) for name, own in params.items()
        ):
            raise ValueError(
                "params must hold a dict of parameters for losses of the sum, "
                f"{', '.join(map(repr, losses))}, got {params!r}"
            )
        self.losses = {
            name: check_number(f"losses[{name!r}]", a, above=0, maximum=MOST_WEIGHT)
            for name, a in losses.items()
        }
        self.params = {name: dict(own) for name, own in params.items()}
        self.parts = nn.ModuleDict()
        for name in losses:
            try:
                self.parts[name] = build_loss(
                    name,
                    num_classes,
                    class_counts,
                    class_images,
                    num_images,
                    ignore_index=ignore_index,
                    reduction=reduction,
                    **self.params.get(name, {}),
                )
            except ValueError as error:
                raise ValueError(f"losses: {name!r} of the sum: {error}") from error

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        parts = [self.parts[name](logits, target) for name in self.losses]
        value = sum(a * part for a, part in zip(self.losses.values(), parts, strict=True))
        dtype = computed_in(logits)
        if logits.device.type != "cpu" or torch.compiler.is_compiling() or dtype == torch.float64:
            return value
        largest = torch.finfo(dtype).max
        if all(part.detach().max() < largest for part in (*parts, value) if part.numel()):
            return value
        # A part, or the sum, does not fit float32.
        return fitted(self(logits.double(), target), dtype)

    def _prior(self, class_sizes: Tensor) -> None:
        return None
