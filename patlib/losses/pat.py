"""Pixel-wise adaptive training (PAT), the loss of the paper."""

from typing import ClassVar

import torch
from torch import Tensor

from patlib.checks import check_choice, check_number

from ._checks import check_batch, check_channels
from ._formula import PixelLoss, computed_in, reduce, smallest_log
from ._fused import pixel_loss

WEIGHTS = ("beta", "none")
NORMALIZATIONS = ("images", "weights")
# exp(60) times any loss still has a float32; see `check_pat`.
LARGEST_EXPONENT = 60.0


def check_pat(
    temperature: float,
    epsilon: float,
    size_exponent: float,
    weight: str,
    normalize: str,
    detach: bool,
) -> tuple[float, float, float]:
    """Check PAT's parameters; return temperature, epsilon and size_exponent as floats."""
    temperature = check_number("temperature", temperature, above=0)
    epsilon = check_number("epsilon", epsilon)
    # Below 5, so that 1 / S^a of an image of 20 megapixels still has a float32.
    size_exponent = check_number("size_exponent", size_exponent, minimum=0, below=5)
    if not isinstance(weight, str):
        raise ValueError(
            f"weight must be one of {', '.join(map(repr, WEIGHTS))}, got {weight!r}; it says "
            "whether PAT multiplies by beta: PAT has no weight of each class"
        )
    check_choice("weight", weight, WEIGHTS)
    check_choice("normalize", normalize, NORMALIZATIONS)
    check_choice("detach", detach, (True, False))
    # p runs through [0, 1], so log β runs from -ε/T to (1 - ε)/T.
    largest = max(abs(epsilon), abs(1 - epsilon)) / temperature
    if weight == "beta" and largest > LARGEST_EXPONENT:
        raise ValueError(
            f"temperature={temperature:g} with epsilon={epsilon:g} gives beta = exp(±{largest:g}), "
            f"which float32 cannot hold; the exponent must be within ±{LARGEST_EXPONENT:g}"
        )
    return temperature, epsilon, size_exponent


def size_weights(class_sizes: Tensor, exponent: float, dtype: torch.dtype) -> Tensor:
    """1 / S^exponent of the class sizes S, int64 of any shape; 1 for S = 0."""
    return class_sizes.clamp_min(1).to(dtype) ** -exponent


def pat_loss(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 20.0,
    epsilon: float = 0.0,
    size_exponent: float = 1.0,
    weight: str = "beta",
    normalize: str = "images",
    detach: bool = False,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    """PAT: each pixel's cross-entropy, weighted by its confidence and by the size of its class::

        loss = (1/B) Σ_i Σ_j β_ij / (S_i^l)^a · (-log p_ij)          Eq. (4)
        β_ij = exp((1 - p_ij - ε) / T)                               Eq. (5)

    over the images i and their valid pixels j, where l is the pixel's true class, p its softmax
    probability and S_i^l the number of valid pixels of class l in image i. The paper has a = 1:
    the sum over an image is then the sum, over the classes in it, of their mean losses. With
    size_exponent=0, weight="none", normalize="weights" it is cross-entropy.

    Args:
        logits: `(B, L, *spatial)`, any floating type; half and bfloat16 are computed in float32.
        target: `(B, *spatial)`, int64, classes 0 ... L-1 or `ignore_index`.
        temperature: T > 0. β lies between exp(-ε/T) and exp((1 - ε)/T): at T = 20 and ε = 0
            between 1 and 1.051.
        epsilon: ε; it only multiplies the loss by exp(-ε/T).
        size_exponent: a, 0 <= a < 5; 1 as in the paper, 0 leaves the sizes out.
        weight: "beta" as in the paper, or "none" for β = 1.
        normalize: what the "mean" divides by: "images", B, as written in Eq. (4); or "weights",
            the sum of the weights β / S^a of the batch, through which no gradient flows. The
            first grows with the number of classes in an image (K times cross-entropy for K
            classes at equal p), the second is of the size of cross-entropy: take "weights" in a
            sum with another loss, such as Dice, or scale PAT down.
        detach: True stops the gradient through β. The paper does not say; the authors' released
            code lets it flow, as False does.
        ignore_index: label of the pixels to leave out, None for none; they count in no S.
        reduction: "mean" as `normalize` says (0 for a batch without valid pixels); "sum" of the
            weighted losses; or "none": one weighted value a pixel, `(B, *spatial)`, 0 at ignored
            ones.

    Raises:
        ValueError: a parameter of the wrong type or out of bounds; T so small that β overflows
            float32; shapes, types or labels other than these.

    Source: "PAT: Pixel-wise Adaptive Training for Long-tailed Segmentation", Eq. (4) and (5).
    """
    temperature, epsilon, size_exponent = check_pat(
        temperature, epsilon, size_exponent, weight, normalize, detach
    )
    labels = check_batch(logits, target, ignore_index, reduction)
    weights = size_weights(labels.class_sizes(), size_exponent, computed_in(logits))  # 1 / S^a

    def beta(p: Tensor) -> Tensor:
        if weight == "none":
            return torch.ones_like(p)
        return torch.exp((1 - epsilon - p) / temperature)  # Eq. (5)

    def confidence_weighted(log_p: Tensor) -> tuple[Tensor, Tensor]:
        finite = log_p.clamp_min(smallest_log(log_p.dtype))  # p log p is 0 at p = 0
        p = finite.exp()
        b = beta(p)
        constant = detach or weight == "none"
        loss = (b.detach() if constant else b) * -log_p  # Eq. (4), a pixel, but for 1 / S^a
        # By log p, of which the derivative of β is -β p / T.
        derivative = (
            -b if constant else torch.addcmul(b, b * -finite, p, value=1 / temperature).neg_()
        )
        return loss, derivative

    loss, total = pixel_loss(
        logits,
        labels,
        confidence_weighted,
        weights=weights,
        total_of=(lambda log_p: beta(log_p.exp())) if normalize == "weights" else None,
    )
    if reduction != "mean":
        return reduce(loss, labels, reduction)
    if normalize == "images":
        return loss.sum() / max(len(loss), 1)  # Eq. (4), the mean over images
    return loss.sum() / total.where(total > 0, 1)  # no valid pixel: 0 / 1


class PATLoss(PixelLoss):
    """Pixel-wise adaptive training as a Module: see `pat_loss`.

    >>> import torch
    >>> from patlib.losses import PATLoss
    >>> logits = torch.zeros(2, 4, 8, 8, requires_grad=True)
    >>> target = torch.zeros(2, 8, 8, dtype=torch.int64)
    >>> target[:, 0, 0] = 1  # two classes in each image, one of a single pixel
    >>> round(PATLoss(temperature=20.0)(logits, target).item(), 4)  # 2 · exp(0.75 / 20) · log 4
    2.8785
    >>> round(PATLoss(normalize="weights")(logits, target).item(), 4)  # log 4
    1.3863
    """

    label: ClassVar[str] = "PAT"
    color: ClassVar[str] = "#cc3311"
    marker: ClassVar[str] = "*"

    def __init__(
        self,
        *,
        temperature: float = 20.0,
        epsilon: float = 0.0,
        size_exponent: float = 1.0,
        weight: str = "beta",
        normalize: str = "images",
        detach: bool = False,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        super().__init__(num_classes=num_classes, ignore_index=ignore_index, reduction=reduction)
        self.temperature, self.epsilon, self.size_exponent = check_pat(
            temperature, epsilon, size_exponent, weight, normalize, detach
        )
        self.weight = weight
        self.normalize = normalize
        self.detach = detach

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_channels(logits, self.num_classes)
        return pat_loss(
            logits,
            target,
            temperature=self.temperature,
            epsilon=self.epsilon,
            size_exponent=self.size_exponent,
            weight=self.weight,
            normalize=self.normalize,
            detach=self.detach,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
