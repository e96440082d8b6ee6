"""Class priors of a trained network, and the shift of its logits from one prior to another.

A softmax network estimates p(class | image) under the class prior that it was trained under. Its
logits can be moved to another prior after training, at no cost (Menon et al., "Long-Tail Learning
via Logit Adjustment", ICLR 2021, Section 4). Two families of shifts start from the priors of
:class:`ClassPriors`, π of the training pixels and q of the loss::

    {"tau": τ}      labels = argmax_c ( s x_c - τ log π_c )
    {"kappa": κ}    labels = argmax_c ( s x_c - κ log(q_c / π_c) )

with x the logits and s the loss's ``logit_scale``, 1 for most. τ = 1 turns cross-entropy, whose
prior is π, into the flat prior; τ < 0 favours frequent classes. κ = 1 undoes the prior of the loss:
the network then estimates under π, as cross-entropy does. τ = 0 and κ = 0 shift nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from patlib.checks import check_choice, check_number
from patlib.losses import SegmentationLoss

KINDS = ("tau", "kappa")
#: the strengths of each kind that every run is scored at, see :func:`patlib.train`
STRENGTHS: dict[str, tuple[float, ...]] = {
    "tau": (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0),
    "kappa": (0.25, 0.5, 0.75, 1.0, 1.25),
}


class ClassPriors(NamedTuple):
    """The logarithms of two priors over L classes; kept in checkpoints.

    A class of prior 0 has no logarithm: it counts as the rarest of the others.

    Attributes:
        log_natural: log π, π the share of the class in the training pixels, float64 (L,).
        log_loss: log q, q the prior under which the loss trains
            (:meth:`patlib.losses.SegmentationLoss.class_prior`), float64 (L,); None if the loss has
            none.
        logit_scale: s, what the loss multiplies the logits by before its softmax.
    """

    log_natural: Tensor
    log_loss: Tensor | None
    logit_scale: float

    @classmethod
    def of(cls, loss: SegmentationLoss, class_sizes: Tensor) -> "ClassPriors":
        """The priors of a loss on a training set.

        Args:
            loss: as it is trained with.
            class_sizes: valid pixels of each class in each training image, (N, L), see
                :func:`patlib.data.class_sizes`.
        """
        # A user's own loss need not have one.
        prior = loss.class_prior(class_sizes) if hasattr(loss, "class_prior") else None
        return cls(
            _log(class_sizes.sum(0).double()),
            None if prior is None else _log(prior),
            getattr(loss, "logit_scale", 1.0),
        )

    def shift(self, prior_shift: Mapping[str, float]) -> Tensor:
        """What a shift subtracts from the logits, float64 (L,): labels = argmax(x - shift).

        Args:
            prior_shift: ``{"tau": τ}`` or ``{"kappa": κ}``.

        Raises:
            ValueError: it is something else, or the loss has no prior for ``"kappa"``.
        """
        kind, strength = check_prior_shift(prior_shift)
        if kind == "tau":
            return strength * self.log_natural / self.logit_scale
        if self.log_loss is None:
            raise ValueError(
                "prior_shift must be {'tau': a number} for a loss without a class prior of its "
                f"own, got {dict(prior_shift)!r}"
            )
        return strength * (self.log_loss - self.log_natural) / self.logit_scale

    def grid(self) -> list[dict[str, float]]:
        """The shifts of ``STRENGTHS`` that these priors allow."""
        kinds = [kind for kind in KINDS if kind == "tau" or self.log_loss is not None]
        return [{kind: strength} for kind in kinds for strength in STRENGTHS[kind]]


def check_prior_shift(prior_shift: Mapping[str, float]) -> tuple[str, float]:
    """Return kind and strength of a shift, such as ``("tau", 0.5)`` for ``{"tau": 0.5}``."""
    if not isinstance(prior_shift, Mapping) or len(prior_shift) != 1:
        raise ValueError(
            "prior_shift must be one of {'tau': a number} and {'kappa': a number}, "
            f"got {prior_shift!r}"
        )
    ((kind, strength),) = prior_shift.items()
    check_choice("the name in prior_shift", kind, KINDS)
    return kind, check_number(f"prior_shift[{kind!r}]", strength)


def _log(mass: Tensor) -> Tensor:
    """log of the shares; a class without any counts as the rarest of the others."""
    share = mass / mass.sum()
    return torch.log(share.clamp_min(share[share > 0].min()))
