"""Weights of the classes made from their frequency in the training set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patlib.checks import check_choice

from ._checks import (
    MOST_WEIGHT,
    ClassCounts,
    check_class_counts,
    check_class_images,
    check_class_weights,
    fill_absent,
)

SCHEMES = ("inverse", "median_frequency", "enet")
# A scheme, the weights themselves, or None for no weights.
ClassWeights = str | Sequence[float] | np.ndarray | Tensor | None


def class_weights(
    scheme: str, class_counts: ClassCounts | None, class_images: ClassCounts | None = None
) -> Tensor:
    """Weight of each class under one of three schemes: float64 (L,), on the CPU::

        "inverse"            w_c = Σ n / (K n_c),  K the number of classes that have pixels
        "median_frequency"   w_c = median(f) / f_c,  f_c = n_c / m_c
        "enet"               w_c = 1 / log(1.02 + n_c / Σ n)

    with n_c the valid pixels of class c in the training set and m_c the number of training images
    that hold it. "inverse" is scaled so that the mean weight of a training pixel, Σ w n / Σ n,
    is 1. f_c is the frequency of Eigen and Fergus (pixels of the class over all pixels of the
    images that hold it) for images of one size, but for a factor that the ratio removes; the
    median is over the classes that have pixels. The weights of "enet" lie between 1.4 and 50.5.

    A class of 0 pixels gets the weight of the rarest of the others, as in `cb_weights`: the
    largest one.

    Args:
        scheme: "inverse", "median_frequency" or "enet".
        class_counts: n_c, (L,).
        class_images: m_c, (L,); needed for "median_frequency", not used by the others.

    Raises:
        ValueError: an unknown scheme; counts missing, negative or not finite; a class with pixels
            but no image, or the reverse.

    Sources: Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a Common
    Multi-Scale Convolutional Architecture", ICCV 2015, Section 4.3 (also SegNet's); Paszke et al.,
    "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation", 2016,
    Section 5.2. "inverse" is scikit-learn's class_weight="balanced".

    >>> class_weights("median_frequency", [900, 90, 10], class_images=[10, 9, 10]).tolist()
    [0.1111111111111111, 1.0, 10.0]
    """
    check_choice("class_weights", scheme, SCHEMES)
    counts = check_class_counts(class_counts)
    present = counts > 0
    if scheme == "inverse":
        return counts.sum() / (present.sum() * fill_absent(counts))
    if scheme == "enet":
        return 1 / torch.log(1.02 + fill_absent(counts) / counts.sum())
    images = check_class_images(class_images, counts)
    frequency = fill_absent(counts / images.clamp_min(1))  # 0 where no pixel
    return torch.quantile(frequency[present], 0.5) / frequency


def resolve_class_weights(
    weights: ClassWeights,
    num_classes: int | None,
    class_counts: ClassCounts | None,
    class_images: ClassCounts | None,
) -> tuple[Any, Tensor | None]:
    """Check the parameter `class_weights` of a loss; return it for display, and the weights.

    The weights are float64 (L,) on the CPU, or None where there are none.
    """
    if weights is None:
        return None, None
    if isinstance(weights, str):
        made = class_weights(weights, class_counts, class_images)
        return weights, check_class_weights(made, num_classes)
    made = check_class_weights(weights, num_classes)
    if (made > MOST_WEIGHT).any():
        raise ValueError(f"class_weights must be <= {MOST_WEIGHT:g}, got {made.max().item():g}")
    return made.tolist(), made


def weights_of_call(weights: Sequence[float] | Tensor | None, num_classes: int) -> Tensor | None:
    """The `class_weights` that a function was called with, as a tensor (L,).

    The values of a tensor are not looked at: on a GPU that would wait for the device.
    """
    if weights is None:
        return None
    if isinstance(weights, Tensor) and weights.is_floating_point():
        if weights.shape != (num_classes,):
            raise ValueError(
                f"class_weights must have one number for each of the {num_classes} classes, got "
                f"shape {tuple(weights.shape)}"
            )
        return weights
    return check_class_weights(weights, num_classes)


def with_weights(mass: Tensor, weights: Tensor | None) -> Tensor:
    """Mass of each class, float64 (L,), times its weight if there is one."""
    return mass if weights is None else mass * weights.to(mass)
