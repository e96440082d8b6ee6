"""Which training images an epoch shows, and in which order.

A sampler is a function of the class sizes of the training images, (N, L), and of a generator, whose
seed must depend on the seed of the run and the number of the epoch only: so an epoch is the same in
a resumed run. It returns N indices of images, so that an epoch has the same number of steps under
each sampler, and methods are compared after equally many updates: a sampler that shows rare images
more often shows others less often, or not at all in an epoch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from patlib.checks import check_number

Sampler = Callable[[Tensor, torch.Generator], Tensor]


def uniform(class_sizes: Tensor, generator: torch.Generator) -> Tensor:
    """Each image once, in random order: int64 (N,).

    Args:
        class_sizes: valid pixels of each class in each training image, int64 (N, L).
        generator: of PyTorch, on the CPU.
    """
    return torch.randperm(len(class_sizes), generator=generator)


def repeat_factors(class_sizes: Tensor, threshold: float = 0.5) -> Tensor:
    """How often each image is repeated on average, float64 (N,), >= 1::

        r_i = max over the classes c in image i of  max(1, sqrt(t / f_c))

    with f_c the share of the training images that hold class c. An image without a class has 1.

    Args:
        class_sizes: valid pixels of each class in each training image, int64 (N, L).
        threshold: t, > 0 and <= 1: images with a class that a smaller share of the images holds are
            repeated. LVIS takes 0.001 for its 1203 classes; of 11 to 19 classes all are in more
            images than that, and none would be repeated. With 0.5, a class in 5 % of the images is
            repeated 3.2 times.

    Source: Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019,
    Section 5.3.
    """
    threshold = check_number("threshold", threshold, above=0, maximum=1)
    present = class_sizes > 0
    share = present.double().mean(0)
    of_class = (threshold / share.clamp_min(1 / len(class_sizes))).sqrt().clamp_min(1)
    return torch.where(present, of_class, 1.0).amax(1)


def repeat_factor(
    class_sizes: Tensor, generator: torch.Generator, *, threshold: float = 0.5
) -> Tensor:
    """Repeat factor sampling: images with rare classes more often, int64 (N,).

    Each image is repeated r_i times, see :func:`repeat_factors`, rounded up with the probability of
    its fraction, anew in each epoch. Of these, in random order, the first N are the epoch: image i
    is shown N r_i / Σ r times on average.

    Args:
        class_sizes: valid pixels of each class in each training image, int64 (N, L).
        generator: of PyTorch, on the CPU.
        threshold: t, see :func:`repeat_factors`.

    Source: Gupta et al., CVPR 2019, Section 5.3; there an epoch has all Σ r images.
    """
    factors = repeat_factors(class_sizes, threshold)
    up = torch.rand(len(factors), generator=generator, dtype=torch.float64) < factors.frac()
    repeated = torch.arange(len(factors)).repeat_interleave(factors.long() + up.long())
    order = torch.randperm(len(repeated), generator=generator)
    return repeated[order[: len(factors)]]


def rare_class_probabilities(class_sizes: Tensor, temperature: float = 0.01) -> Tensor:
    """Probability of each class to be drawn, float64 (L,)::

        P(c) = exp((1 - f_c) / T) / Σ_k exp((1 - f_k) / T)

    with f_c the share of the valid training pixels that are of class c; 0 for a class without any.

    Args:
        class_sizes: valid pixels of each class in each training image, int64 (N, L).
        temperature: T > 0; DAFormer takes 0.01. The larger, the more alike the classes.

    Raises:
        ValueError: no class has a pixel.

    Source: Hoyer et al., "DAFormer: Improving Network Architectures and Training Strategies for
    Domain-Adaptive Semantic Segmentation", CVPR 2022, Eq. (9) and (10).
    """
    temperature = check_number("temperature", temperature, above=0)
    pixels = class_sizes.sum(0).double()
    if not pixels.any():
        raise ValueError("class_sizes must have a pixel of at least one class, got only zeros")
    logits = ((1 - pixels / pixels.sum()) / temperature).masked_fill(pixels == 0, -torch.inf)
    return torch.softmax(logits, 0)


def rare_class(
    class_sizes: Tensor, generator: torch.Generator, *, temperature: float = 0.01
) -> Tensor:
    """Rare class sampling: draw a class, then one of the images that hold it, N times: int64 (N,).

    A class is drawn with the probability :func:`rare_class_probabilities`, its images with equal
    probability, all with replacement. An image without valid pixels is never shown. (DAFormer also
    wants a least number of pixels of the class in the image, for its crops.)

    Args:
        class_sizes: valid pixels of each class in each training image, int64 (N, L).
        generator: of PyTorch, on the CPU.
        temperature: T, see :func:`rare_class_probabilities`.

    Raises:
        ValueError: no class has a pixel.

    Source: Hoyer et al., CVPR 2022, Section 3.3.
    """
    probabilities = rare_class_probabilities(class_sizes, temperature)
    u, v = torch.rand(2, len(class_sizes), generator=generator, dtype=torch.float64)
    # Only classes that can be drawn, so that rounding never ends in one that cannot.
    possible = probabilities.nonzero().flatten()
    bounds = probabilities[possible].cumsum(0)[:-1]
    drawn = possible[torch.searchsorted(bounds, u, right=True)]
    order = torch.empty(len(class_sizes), dtype=torch.int64)
    for c in drawn.unique().tolist():
        images = class_sizes[:, c].nonzero().flatten()
        here = drawn == c
        order[here] = images[(v[here] * len(images)).long()]
    return order


SAMPLERS: dict[str, Sampler] = {
    "uniform": uniform,
    "repeat_factor": repeat_factor,
    "rare_class": rare_class,
}
