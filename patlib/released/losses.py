"""The losses of the released code, as functions and as Modules that a run can train with.

The functions know no ignored pixels, as the released code does not: void is a class there. The
Modules leave ignored pixels out before they call them, so that a run differs from one with the
loss of `patlib.losses` in the formula alone.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patlib import losses
from patlib.checks import check_number, check_parameters
from patlib.losses import SegmentationLoss
from patlib.losses._checks import MOST, check_batch
from patlib.losses._formula import computed_in, per_channel, true_class_log_prob


def pat_inap(logits: Tensor, target: Tensor, tau: float = 1.0) -> Tensor:
    """Released PAT, variant "inap": mean over B·L·H·W of -log p · w, w = 1 / (2 exp(p - 1)).

    p is the probability of the pixel's true class under softmax(logits / τ). Beside Eq. (4) and
    (5): nothing is divided by the class size S; T of Eq. (5) is missing, τ divides the logits
    instead; and the mean over the one-hot target's L channels makes the loss L times smaller than
    a mean over pixels. The gradient flows through w. w lies in [0.5, 1.36].

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, 0 ... L-1. The released code has no ignored pixels: void is
            a class (data loaded with `void="class"`), and 255 is refused.
        tau: τ > 0, divides the logits.

    Raises:
        ValueError: τ not positive or not finite; shapes, types or labels other than these.

    >>> logits = torch.zeros(1, 2, 1, 1)
    >>> target = torch.zeros(1, 1, 1, dtype=torch.int64)
    >>> round(pat_inap(logits, target).item(), 4)  # log 2 / (2 exp(-1/2)) / 2
    0.2857
    """
    return _released_pat(logits, target, tau, times_classes=False)


def pat_ina(logits: Tensor, target: Tensor, tau: float = 1.0) -> Tensor:
    """Released PAT, variant "ina": as `pat_inap`, with w = 1 / (2 exp(L (p - 1))).

    L is the number of classes, so that w lies in [0.5, exp(L) / 2]: with 19 classes a pixel of
    p = 0 weighs 178 million times one of p = 1.

    Args, Raises: as `pat_inap`.

    >>> logits = torch.zeros(1, 2, 1, 1)
    >>> target = torch.zeros(1, 1, 1, dtype=torch.int64)
    >>> round(pat_ina(logits, target).item(), 4)  # log 2 / (2 exp(-1)) / 2
    0.471
    """
    return _released_pat(logits, target, tau, times_classes=True)


def _released_pat(logits: Tensor, target: Tensor, tau: float, times_classes: bool) -> Tensor:
    tau = check_number("tau", tau, above=0)
    _check(logits, target)
    logits = logits.to(computed_in(logits))
    log_p = true_class_log_prob(logits / tau, target, ignore_index=255)
    exponent = logits.shape[1] if times_classes else 1
    w = 1 / (2 * torch.exp(exponent * (log_p.exp() - 1)))
    return (w * -log_p).sum() / max(logits.numel(), 1)


def released_bms(logits: Tensor, target: Tensor) -> Tensor:
    """Released balanced softmax: mean over pixels of -log softmax(exp(x) · n), at the true class.

    n_c are the pixels of class c in the batch. Balanced softmax is log softmax(x + log n), with the
    counts of the training set (`patlib.losses.bms_loss`): here the logits are exponentiated once
    more. A class that is absent from the batch has the logit 0. Computed in float64, because
    exp(x) · n leaves float32 for x near 80.

    Args, Raises: as `pat_inap`, without tau.

    >>> logits = torch.zeros(1, 2, 1, 4)
    >>> target = torch.tensor([[[0, 0, 0, 1]]])
    >>> round(released_bms(logits, target).item(), 4)  # softmax of (3, 1) for all four pixels
    0.6269
    """
    _check(logits, target)
    z = logits.double().exp() * per_channel(_batch_counts(logits, target), logits)
    return _mean(-_of_true_class(F.log_softmax(z, 1), target)).to(computed_in(logits))


def released_cb(logits: Tensor, target: Tensor, gamma: float = 0.0) -> Tensor:
    """Released CB, and CBFocal with gamma > 0: mean over pixels of -w_y (1 - p)^γ log p::

        w_c = (1 - b) / (1 - b^n_c + 1e-6),  b = (N - 1) / N

    with n_c the pixels of class c in the batch, and N all pixels of the batch. The paper cites
    Cui et al., who count the classes of the training set (`patlib.losses.cb_loss`).

    Args:
        logits, target: as `pat_inap`.
        gamma: γ >= 0, 0 for CB.

    Raises:
        ValueError: gamma negative or not finite; shapes, types or labels as in `pat_inap`.

    >>> logits = torch.zeros(1, 2, 1, 4)
    >>> target = torch.tensor([[[0, 0, 0, 1]]])
    >>> round(released_cb(logits, target).item(), 4)  # w = 0.4324 and 1
    0.3981
    """
    gamma = check_number("gamma", gamma, minimum=0, maximum=MOST)
    _check(logits, target)
    n, pixels = _batch_counts(logits, target), max(target.numel(), 1)
    b = (pixels - 1) / pixels
    weights = (1 - b) / (1 - b**n + 1e-6)
    log_p = _of_true_class(F.log_softmax(logits.to(computed_in(logits)), 1), target)
    loss = -weights.to(log_p)[target] * log_p
    if gamma:
        loss = loss * (1 - log_p.exp()) ** gamma
    return _mean(loss)


def released_ldam(
    logits: Tensor, target: Tensor, max_margin: float = 0.5, scale: float = 20.0
) -> Tensor:
    """Released LDAM: mean over pixels of the cross-entropy of s · (x_c - Δ_c [c = y])::

        Δ_c ∝ (n_c + 1e-4)^(-1/4), the largest = max_margin

    with n_c the pixels of class c in the batch. A class that is absent from the batch takes the
    largest margin and leaves those that are present with at most a tenth of it. The paper cites
    Cao et al., who count the classes of the training set (`patlib.losses.ldam_loss`).

    Args:
        logits, target: as `pat_inap`.
        max_margin: the largest Δ, in logits before scaling, >= 0.
        scale: s > 0.

    Raises:
        ValueError: max_margin negative, scale not positive, either not finite; shapes, types or
            labels as in `pat_inap`.

    >>> logits = torch.zeros(1, 2, 1, 2)
    >>> target = torch.tensor([[[0, 1]]])
    >>> round(released_ldam(logits, target).item(), 4)  # log(1 + exp(20 · 0.5))
    10.0
    """
    max_margin = check_number("max_margin", max_margin, minimum=0, maximum=MOST)
    scale = check_number("scale", scale, above=0, maximum=MOST)
    _check(logits, target)
    x = logits.to(computed_in(logits))
    margins = (_batch_counts(logits, target) + 1e-4) ** -0.25
    margins = (max_margin * margins / margins.max()).to(x)
    true = F.one_hot(target, x.shape[1]).movedim(-1, 1)
    z = scale * (x - true * per_channel(margins, x))
    return _mean(-_of_true_class(F.log_softmax(z, 1), target))


def released_blv(logits: Tensor, target: Tensor, sigma: float = 0.5) -> Tensor:
    """Released BLV: mean over pixels of the cross-entropy of varied logits::

        x_c + |clamp(δ, -1, 1)| · f_c / max f

    f_c = log n_c, with n_c the pixels of class c in the batch: the more frequent the class, the
    more its logits vary. Wang et al. take f_c = log Σ n - log n_c, by which rare classes vary most
    (`patlib.losses.blv_loss`). δ is normal with standard deviation σ, drawn for each logit from
    PyTorch's global generator. A class that is absent from the batch, whose log n_c is -∞, does not
    vary here.

    Args:
        logits, target: as `pat_inap`.
        sigma: σ >= 0, in logits.

    Raises:
        ValueError: sigma negative or not finite; shapes, types or labels as in `pat_inap`.

    >>> logits = torch.zeros(1, 2, 1, 4)
    >>> target = torch.tensor([[[0, 0, 0, 1]]])
    >>> round(released_blv(logits, target, sigma=0).item(), 4)  # log 2
    0.6931
    """
    sigma = check_number("sigma", sigma, minimum=0, maximum=MOST)
    _check(logits, target)
    x = logits.to(computed_in(logits))
    f = _batch_counts(logits, target).clamp_min(1).log()
    drawn = (sigma * torch.randn_like(x)).abs().clamp_max(1)
    varied = x + drawn * per_channel(f / f.max().clamp_min(1e-12), x).to(x)
    return _mean(-_of_true_class(F.log_softmax(varied, 1), target))


class ReleasedLoss(SegmentationLoss):
    """Base of the Modules: a loss of the released code on the valid pixels of a batch.

    A class prior is known of none of them, so that records have no shift of the kind "kappa".
    """

    def __init__(self, *, num_classes: int | None = None, ignore_index: int | None = 255) -> None:
        super().__init__(num_classes=num_classes, ignore_index=ignore_index)

    def of_pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of P valid pixels: logits (P, L), target (P,)."""
        raise NotImplementedError

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_batch(logits, target, self.ignore_index, "mean", self.num_classes)
        pixels, labels = logits.movedim(1, -1).flatten(0, -2), target.flatten()
        if self.ignore_index is not None:
            # By number and not by a mask, whose gradient takes many times as long.
            valid = (labels != self.ignore_index).nonzero().squeeze(1)
            pixels, labels = pixels.index_select(0, valid), labels[valid]
        return self.of_pixels(pixels, labels)

    def _prior(self, class_sizes: Tensor) -> None:
        return None


class ReleasedBMS(ReleasedLoss):
    """See `released_bms`."""

    def of_pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        return released_bms(logits, target)


class ReleasedCB(ReleasedLoss):
    """See `released_cb`."""

    def __init__(
        self, *, gamma: float = 0.0, num_classes: int | None = None, ignore_index: int | None = 255
    ) -> None:
        super().__init__(num_classes=num_classes, ignore_index=ignore_index)
        self.gamma = check_number("gamma", gamma, minimum=0, maximum=MOST)

    def of_pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        return released_cb(logits, target, self.gamma)


class ReleasedLDAM(ReleasedLoss):
    """See `released_ldam`."""

    def __init__(
        self,
        *,
        max_margin: float = 0.5,
        scale: float = 20.0,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__(num_classes=num_classes, ignore_index=ignore_index)
        self.max_margin = check_number("max_margin", max_margin, minimum=0, maximum=MOST)
        self.scale = check_number("scale", scale, above=0, maximum=MOST)

    @property
    def logit_scale(self) -> float:
        return self.scale

    def of_pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        return released_ldam(logits, target, self.max_margin, self.scale)


class ReleasedBLV(ReleasedLoss):
    """See `released_blv`; without noise outside of training mode."""

    def __init__(
        self, *, sigma: float = 0.5, num_classes: int | None = None, ignore_index: int | None = 255
    ) -> None:
        super().__init__(num_classes=num_classes, ignore_index=ignore_index)
        self.sigma = check_number("sigma", sigma, minimum=0, maximum=MOST)

    def of_pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        return released_blv(logits, target, self.sigma if self.training else 0.0)


class ReleasedINAP(ReleasedLoss):
    """See `pat_inap`."""

    def __init__(
        self, *, tau: float = 1.0, num_classes: int | None = None, ignore_index: int | None = 255
    ) -> None:
        super().__init__(num_classes=num_classes, ignore_index=ignore_index)
        self.tau = check_number("tau", tau, above=0)

    def of_pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        return pat_inap(logits, target, self.tau)


class ReleasedINA(ReleasedINAP):
    """See `pat_ina`."""

    def of_pixels(self, logits: Tensor, target: Tensor) -> Tensor:
        return pat_ina(logits, target, self.tau)


RELEASED_LOSSES: dict[str, type[ReleasedLoss]] = {
    "released_bms": ReleasedBMS,
    "released_cb": ReleasedCB,
    "released_ldam": ReleasedLDAM,
    "released_blv": ReleasedBLV,
    "released_inap": ReleasedINAP,
    "released_ina": ReleasedINA,
}


def build_run_loss(name: str, num_classes: int, **options: Any) -> SegmentationLoss:
    """The loss of a run: one of `RELEASED_LOSSES`, or of `patlib.losses.build_loss`.

    Args:
        name: a name of either.
        num_classes: L.
        options: of `patlib.losses.build_loss`; a loss of the released code counts the classes of
            each batch, and does not look at those of the training set.

    Raises:
        ValueError: as `patlib.losses.build_loss`.
    """
    if name not in RELEASED_LOSSES:
        return losses.build_loss(name, num_classes, **options)
    of_training_set = ("class_counts", "class_images", "num_images")
    params = {key: value for key, value in options.items() if key not in of_training_set}
    module = RELEASED_LOSSES[name]
    check_parameters(f"loss {name!r}", params, inspect.signature(module).parameters)
    return module(num_classes=num_classes, **params)


def _check(logits: Tensor, target: Tensor) -> None:
    """Refuse what is no batch, and pixels to be ignored."""
    check_batch(logits, target, ignore_index=255, reduction="mean")
    if (target == 255).any():
        raise ValueError(
            "target has ignored pixels (255), which the released code does not know: load the "
            'data with void="class"'
        )


def _batch_counts(logits: Tensor, target: Tensor) -> Tensor:
    """Pixels of each class in the batch, float64 (L,)."""
    return target.flatten().bincount(minlength=logits.shape[1]).double()


def _of_true_class(values: Tensor, target: Tensor) -> Tensor:
    return values.gather(1, target.unsqueeze(1)).squeeze(1)


def _mean(loss: Tensor) -> Tensor:
    """The mean over the pixels; 0 of no pixel."""
    return loss.sum() / max(loss.numel(), 1)
