"""Pixel-wise adaptive training (PAT), the loss of the paper."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from patlib.checks import check_choice, check_integer, check_number

from ._checks import (
    ClassCounts,
    check_batch,
    check_channels,
    check_class_counts,
    check_class_images,
    check_class_weights,
    fill_absent,
)
from ._formula import DeferredLoss, computed_in, reduce, smallest_log, sum_of
from ._fused import pixel_loss
from ._prior import pointwise_prior
from .ce import ce_loss
from .class_weights import weights_of_call, with_weights

WEIGHTS = ("beta", "none")
NORMALIZATIONS = ("images", "weights")
SIZES = ("image", "dataset")
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
            "whether PAT multiplies by beta, and is no weight of each class"
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


def pat_class_weights(
    sizes: str,
    size_exponent: float,
    presence_exponent: float,
    class_counts: ClassCounts | None = None,
    class_images: ClassCounts | None = None,
    num_images: int | None = None,
) -> Tensor | None:
    """What PAT multiplies into a pixel's weight for its class alone: float64 (L,), on the CPU::

        (m_l / N)^-b                     sizes="image"
        (n_l / N)^-a · (m_l / N)^-b      sizes="dataset"

    with n_l the valid pixels of class l in the N training images and m_l the number of these images
    that hold it; None where that is 1 for all classes. A class without pixels is treated as the
    rarest of the others.

    Args:
        sizes, size_exponent, presence_exponent: a and b, see `PATLoss`.
        class_counts: n_l, (L,).
        class_images: m_l, (L,); needed for b > 0.
        num_images: N; needed for sizes="dataset" and for b > 0.

    Raises:
        ValueError: what is needed is missing, or not as `check_class_counts` allows.
    """
    over_dataset = sizes == "dataset"
    if not over_dataset and presence_exponent == 0:
        return None
    needed = {"class_counts": class_counts, "num_images": num_images}
    if presence_exponent > 0:
        needed["class_images"] = class_images
    if missing := [name for name, value in needed.items() if value is None]:
        what = "presence_exponent > 0" if presence_exponent > 0 else "sizes='dataset'"
        raise ValueError(
            f"{', '.join(missing)} must be given, which PAT needs for {what}, got None; with "
            "sizes = patlib.data.class_sizes(dataset) they are class_counts=sizes.sum(0), "
            "class_images=(sizes > 0).sum(0), num_images=len(sizes)"
        )
    counts = check_class_counts(class_counts)
    num_images = check_integer("num_images", num_images, minimum=1)
    weights = torch.ones_like(counts)
    if over_dataset:
        weights *= (fill_absent(counts) / num_images) ** -size_exponent
    if presence_exponent > 0:
        images = check_class_images(class_images, counts, num_images)
        if over_dataset:  # of absent classes fill_absent has warned
            images = images.where(images > 0, images[images > 0].min())
        else:
            images = fill_absent(images)
        weights *= (images / num_images) ** -presence_exponent
    return weights


def beta(p: Tensor, temperature: float, epsilon: float, weight: str) -> Tensor:
    """β of the probabilities p; 1 for weight="none"."""
    if weight == "none":
        return torch.ones_like(p)
    return torch.exp((1 - epsilon - p) / temperature)  # Eq. (5)


def confidence_weighted(
    log_p: Tensor, temperature: float, epsilon: float, weight: str, detach: bool
) -> tuple[Tensor, Tensor]:
    """β(p) · (-log p), element by element, and its derivative by log p."""
    finite = log_p.clamp_min(smallest_log(log_p.dtype))  # p log p is 0 at p = 0
    p = finite.exp()
    b = beta(p, temperature, epsilon, weight)
    constant = detach or weight == "none"
    loss = (b.detach() if constant else b) * -log_p  # Eq. (4), a pixel, but for 1 / S^a
    # By log p, of which the derivative of β is -β p / T.
    derivative = -b if constant else torch.addcmul(b, b * -finite, p, value=1 / temperature).neg_()
    return loss, derivative


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
    class_weights: Sequence[float] | Tensor | None = None,
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

    Of a batch in parts, as in gradient accumulation and in several processes, the mean is that of
    the parts' means, each weighted with its share of the images, or, with normalize="weights", of
    Σ β / S^a. Without weights it is that only of parts with equally many images, or equal sums.

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
        class_weights: (L,), finite, >= 0, multiply the weights β / S^a of the pixels of each
            class; None for 1, as in the paper. The Module makes them for its variants.
        ignore_index: label of the pixels to leave out, None for none; they count in no S.
        reduction: "mean" as `normalize` says (0 for a batch without valid pixels); "sum" of the
            weighted losses; or "none": one weighted value a pixel, `(B, *spatial)`, 0 at ignored
            ones.

    Raises:
        ValueError: a parameter of the wrong type or out of bounds; T so small that β overflows
            float32; class weights negative, not finite or not L; shapes, types or
            labels other than these.

    Source: "PAT: Pixel-wise Adaptive Training for Long-tailed Segmentation", Eq. (4) and (5).
    """
    temperature, epsilon, size_exponent = check_pat(
        temperature, epsilon, size_exponent, weight, normalize, detach
    )
    labels = check_batch(logits, target, ignore_index, reduction)
    weights = size_weights(labels.class_sizes(), size_exponent, computed_in(logits))  # 1 / S^a
    if class_weights is not None:
        weights = weights * weights_of_call(class_weights, labels.num_classes).to(weights)
    loss, total = pixel_loss(
        logits,
        labels,
        lambda log_p: confidence_weighted(log_p, temperature, epsilon, weight, detach),
        weights=weights,
        total_of=(
            (lambda log_p: beta(log_p.exp(), temperature, epsilon, weight))
            if normalize == "weights"
            else None
        ),
    )
    if reduction != "mean":
        return reduce(loss, logits, labels, reduction)
    if normalize == "images":
        return sum_of(loss, logits, max(len(loss), 1))  # Eq. (4), the mean over images
    return sum_of(loss, logits, total.where(total > 0, 1))  # no valid pixel: 0 / 1


class PATLoss(DeferredLoss):
    """Pixel-wise adaptive training as a Module: see `pat_loss`.

    Two variants, off by default, put in the place of β / (S_i^l)^a::

        β / (S_i^l)^a · (m_l / N)^-b     sizes="image"
        β / (n_l / N)^a · (m_l / N)^-b   sizes="dataset"

    with n_l the valid pixels of class l in the N training images, m_l the number of these images
    that hold it. Each image's pixels of a class sum to 1 in Eq. (4), whatever their number: a class
    counts as often as there are images with it. b = 1 takes that off again, and
    sizes="dataset" with a = 1 takes off the frequency of the class in the pixels of the training
    set (which is inverse class frequency with β). With one training image
    both `sizes` are the same.

    A third, `deferred`, is cross-entropy until that share of the training is done, as deferred
    re-weighting is of LDAM. `patlib.training` sets `progress`; in a loop of your own, set it before
    each epoch.

    Args:
        temperature, epsilon, size_exponent, weight, normalize, detach: see `pat_loss`.
        sizes: which size of the class a pixel's weight has: that in its "image" (the paper), or
            that in the "dataset".
        presence_exponent: b, 0 <= b < 5, without unit; 0 in the paper.
        deferred: share of the training, > 0 and < 1, until which the loss is cross-entropy; None
            for never, as in the paper.
        class_counts: n_l, (L,); needed for sizes="dataset" and for b > 0. A class without pixels
            is treated as the rarest of the others.
        class_images: m_l, (L,); needed for b > 0.
        num_images: N; needed for sizes="dataset" and for b > 0.

    Attributes:
        progress: share of the training that is done, in [0, 1]; 0 when the loss is built.

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
        sizes: str = "image",
        presence_exponent: float = 0.0,
        deferred: float | None = None,
        class_counts: ClassCounts | None = None,
        class_images: ClassCounts | None = None,
        num_images: int | None = None,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        reduction: str = "mean",
    ) -> None:
        check_choice("sizes", sizes, SIZES)
        presence_exponent = check_number("presence_exponent", presence_exponent, minimum=0, below=5)
        check_pat(temperature, epsilon, size_exponent, weight, normalize, detach)
        class_weights = pat_class_weights(
            sizes, size_exponent, presence_exponent, class_counts, class_images, num_images
        )
        if class_weights is not None:
            check_class_weights(class_weights, num_classes)
            num_classes = len(class_weights)
        super().__init__(
            deferred=deferred,
            num_classes=num_classes,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        self.temperature, self.epsilon, self.size_exponent = check_pat(
            temperature, epsilon, size_exponent, weight, normalize, detach
        )
        self.weight = weight
        self.normalize = normalize
        self.detach = detach
        self.sizes = sizes
        self.presence_exponent = presence_exponent
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        check_channels(logits, self.num_classes)
        if self.is_deferred:
            return ce_loss(logits, target, ignore_index=self.ignore_index, reduction=self.reduction)
        return pat_loss(
            logits,
            target,
            temperature=self.temperature,
            epsilon=self.epsilon,
            # The sizes in the data set are in the weights of the classes.
            size_exponent=self.size_exponent if self.sizes == "image" else 0.0,
            weight=self.weight,
            normalize=self.normalize,
            detach=self.detach,
            class_weights=self.class_weights,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def _prior(self, class_sizes: Tensor) -> Tensor:  # at the end of the training
        pixels = class_sizes  # Σ_i S_i^(1-a), with the weights of the classes
        if self.sizes == "image":
            pixels = (class_sizes ** (1 - self.size_exponent)).where(class_sizes > 0, 0)
        return pointwise_prior(
            with_weights(pixels.sum(0), self.class_weights),
            lambda log_p: confidence_weighted(
                log_p, self.temperature, self.epsilon, self.weight, self.detach
            ),
        )
