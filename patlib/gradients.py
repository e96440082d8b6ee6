"""Gradients by class: how much of an update comes from the pixels of each class (paper, Sec. 4.3).

The loss of an image is a sum over its pixels, so also over its classes: L(x_i) = Σ_l L_l(x_i), with
L_l over the S pixels whose true class is l. Eq. (6) says ∇L_l = S · ∇(mean loss of the class), and
Eq. (7) compares the norms of these parts between the classes of an image. Here they are measured.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from patlib.batches import SplitTensors
from patlib.checks import check_integer
from patlib.config import RunConfig
from patlib.data import class_sizes, load_arrays
from patlib.prediction import load_model
from patlib.training import Learner, loss_of_run, open_split, set_progress

#: with respect to what: the logits; the feature map that goes into ``model.classifier``; the
#: weights of ``model.classifier``; all parameters of the network
LAYERS = ("logits", "features", "classifier", "network")


class ClassGradients(NamedTuple):
    """Gradient norms of M pairs of an image and a class that occurs in it.

    Attributes:
        images: number of the image, int (M,), in the order seen.
        classes: the class l, int (M,).
        sizes: S, its valid pixels in the image, int (M,).
        norms: layer (of ``LAYERS``) -> ||∂L_l(x_i)/∂layer||, Euclidean, float (M,).
    """

    images: np.ndarray
    classes: np.ndarray
    sizes: np.ndarray
    norms: dict[str, np.ndarray]


class Exponent(NamedTuple):
    """The α of ||g|| ∝ S^α, and the ends of its 95 % bootstrap interval over images."""

    value: float
    low: float
    high: float


def class_gradients(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: nn.Module,
    whole_network: bool = False,
) -> ClassGradients:
    """The gradient that the pixels of each class of each image send, measured as in training.

    Batch norm uses the statistics of the batch, as in a training step; the model itself, its
    running statistics included, stays as it is. One backward pass through the loss serves all
    classes: what a class sends to its logits is what the loss sends to its pixels, and from there
    it is followed class by class through ``model.classifier`` alone. The loss and all that is
    behind it is computed in float64, where the gradient of a pixel that is nearly sure of its
    class is not rounded to 0.

    Args:
        model: a network of :mod:`patlib.models`.
        batches: images (B, 3, H, W) and targets (B, H, W), on the device of the model.
        loss: a loss of :mod:`patlib.losses` with ``reduction="sum"``, so that the gradient of an
            image does not depend on the number of images or pixels beside it. A pixel's gradient
            must come from its own loss alone, as in all of these.
        whole_network: also follow each class of each image through all layers (``"network"``):
            a backward pass of the batch for every pair.

    Raises:
        ValueError: the loss has another reduction, or the batches have no valid pixel.
    """
    if loss.reduction != "sum":
        raise ValueError(f"loss must have reduction='sum', got reduction={loss.reduction!r}")
    model = copy.deepcopy(model).train().requires_grad_(whole_network)
    parameters = list(model.parameters())
    seen = {}

    def look(module, inputs, output):
        logits = output.detach().double().requires_grad_()
        seen.update(features=inputs[0].detach(), output=output, logits=logits)
        return logits

    model.classifier.register_forward_hook(look)
    rows, first = [], 0
    for images, target in batches:
        (gradient,) = torch.autograd.grad(loss(model(images), target), seen["logits"])
        # The network may have padded the images at the bottom and right: pixels of no class.
        bottom, right = (a - b for a, b in zip(gradient.shape[2:], target.shape[1:], strict=True))
        labels = F.pad(target, (0, right, 0, bottom), value=loss.ignore_index)
        for i, label in enumerate(labels):
            classes, sizes = label[label != loss.ignore_index].unique(return_counts=True)
            if len(classes) == 0:
                continue
            norms = _classifier_norms(
                model.classifier, seen["features"][i], gradient[i], label, classes
            )
            if whole_network:
                norms["network"] = [
                    _network_norm(seen["output"], parameters, gradient, i, label == c)
                    for c in classes
                ]
            image = [first + i] * len(classes)
            rows += zip(image, classes.tolist(), sizes.tolist(), *norms.values(), strict=True)
            layers = list(norms)
        first += len(target)
    if not rows:
        raise ValueError("batches must have a valid pixel, got none")
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return ClassGradients(*columns[:3], dict(zip(layers, columns[3:], strict=True)))


def _classifier_norms(classifier, features, gradient, label, classes) -> dict[str, list[float]]:
    """Norms at the logits and on both sides of the classifier, for each class of one image.

    Features (C, H, W), gradient at the logits (L, H, W), label (H, W).
    """
    stride, padding, dilation = classifier.stride, classifier.padding, classifier.dilation
    # What the filters see at each pixel, (C · kernel area, H · W).
    patches = F.unfold(features[None].double(), classifier.kernel_size, dilation, padding, stride)
    norms = {"logits": [], "features": [], "classifier": []}
    for c in classes:
        mask = label == c
        part = gradient[:, mask]  # (L, S)
        norms["logits"].append(part.norm().item())
        norms["classifier"].append((part @ patches[0][:, mask.flatten()].T).norm().item())
        back = nn.grad.conv2d_input(
            (1, *features.shape),
            classifier.weight.detach().double(),
            (gradient * mask)[None],
            stride,
            padding,
            dilation,
        )
        norms["features"].append(back.norm().item())
    return norms


def _network_norm(output, parameters, gradient, image: int, mask) -> float:
    sent = torch.zeros_like(output)
    sent[image] = (gradient[image] * mask).to(output.dtype)
    parts = torch.autograd.grad(output, parameters, sent, retain_graph=True)
    return torch.stack([part.double().square().sum() for part in parts]).sum().sqrt().item()


def fit_exponent(
    sizes: Sequence, norms: Sequence, images: Sequence, resamples: int = 1000, seed: int = 0
) -> Exponent:
    """Fit ||g|| ∝ S^α: the slope of log ||g|| over log S by least squares.

    The same α is the ``size_exponent`` a that homogenises these gradients best: of all a, the
    variance of log(||g|| / S^a) is smallest at a = α.

    Args:
        sizes: S of each pair of image and class, (M,).
        norms: ||g|| of each, (M,).
        images: number of the image of each, (M,). The bootstrap draws whole images, because the
            classes of an image are not independent of each other.
        resamples: bootstrap samples behind the interval (2.5 to 97.5 %).
        seed: of the bootstrap.

    Raises:
        ValueError: lengths differ; sizes or norms are not all finite and positive (a power law has
            no zero); or all sizes are equal.
    """
    sizes, norms, images = (np.asarray(values) for values in (sizes, norms, images))
    if not sizes.shape == norms.shape == images.shape or sizes.ndim != 1:
        raise ValueError(
            "sizes, norms and images must be lists of the same length, got "
            f"{sizes.shape}, {norms.shape} and {images.shape}"
        )
    for name, values in (("sizes", sizes), ("norms", norms)):
        wrong = ~(np.isfinite(values) & (values > 0))
        if wrong.any():
            hint = ""
            if name == "norms":  # of a network whose units are all off they are 0
                hint = "; take another model, model_params or seed"
            raise ValueError(f"{name} must be finite and > 0, got {values[wrong][0]}{hint}")
    if len(np.unique(sizes)) < 2:
        raise ValueError("sizes must not be all equal: they would fit any exponent")
    x, y = np.log(sizes), np.log(norms)
    x, y = x - x.mean(), y - y.mean()  # changes no slope, but keeps the differences below exact
    _, image = np.unique(images, return_inverse=True)
    # A slope needs five sums, and a sum over drawn images is a sum of sums over images.
    sums = np.stack([np.bincount(image, v) for v in (np.ones_like(x), x, y, x * x, x * y)])
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Of few images a sample can have a single size, hence no slope.
        low, high = np.nanquantile(_slope(*(sums @ drawn.T)), (0.025, 0.975))
    return Exponent(float(_slope(*sums.sum(1))), float(low), float(high))


def _slope(n, x, y, xx, xy):
    return (n * xy - x * y) / (n * xx - x * x)


def class_ratio(norms: Sequence, images: Sequence) -> float:
    """How unequal the classes of an image are: the median, over images, of largest / smallest norm.

    Eq. (7) for the two classes of an image that differ most; 1 means homogeneous. Images of one
    class are left out; NaN if there is no other.
    """
    norms, images = np.asarray(norms), np.asarray(images)
    parts = [norms[images == image] for image in np.unique(images)]
    ratios = [part.max() / part.min() for part in parts if len(part) > 1]
    return float(np.median(ratios)) if ratios else math.nan


def summarise(gradients: ClassGradients) -> dict[str, dict]:
    """What is recorded of a measurement, fit for JSON, to five digits.

    Returns:
        layer -> ``images`` and ``pairs`` (how many), ``exponent`` (value, low, high), ``ratio``
        (see :func:`class_ratio`), and of the classes that occur ``classes`` (their numbers),
        ``sizes`` and ``norms``: the geometric means over images of S and of the gradient's norm.
    """
    classes = np.unique(gradients.classes)

    def means(values: np.ndarray) -> list[float]:
        logs = np.log(values)
        return [_short(np.exp(logs[gradients.classes == c].mean())) for c in classes]

    return {
        layer: {
            "images": len(np.unique(gradients.images)),
            "pairs": len(gradients.images),
            "exponent": [_short(v) for v in fit_exponent(gradients.sizes, norms, gradients.images)],
            "ratio": _short(class_ratio(norms, gradients.images)),
            "classes": classes.tolist(),
            "sizes": means(gradients.sizes),
            "norms": means(norms),
        }
        for layer, norms in gradients.norms.items()
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def measure(
    config: RunConfig,
    networks: Iterable[tuple[int, nn.Module]],
    num_images: int,
    whole_network: bool = False,
) -> dict[int, ClassGradients]:
    """Class gradients of the run's own loss on its training images, for each of its networks.

    Args:
        config: the run: its data, loss, batch size and seed.
        networks: pairs of the epochs done and the network, as from :func:`training_states`.
        num_images: how many training images (at most all), drawn with the run's seed: for all
            networks, and for all losses of the same data and seed, the same ones.
        whole_network: see :func:`class_gradients`.

    Raises:
        ValueError: num_images is less than 1.
    """
    num_images = check_integer("num_images", num_images, minimum=1)
    images, sizes = _training_data(config)
    loss = loss_of_run(config, sizes, reduction="sum").to(images.device)
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(images), generator=generator)[:num_images]
    measured = {}
    for epochs, model in networks:
        set_progress(loss, epochs / config.epochs)
        batches = (images.batch(index) for index in chosen.split(config.batch_size))
        measured[epochs] = class_gradients(model.to(images.device), batches, loss, whole_network)
    return measured


def training_states(config: RunConfig, epochs: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
    """The network of a run after so many of its epochs; 0 is the network before the first step.

    Takes the same steps as :func:`patlib.train`, without scores and files, and stops after the
    last epoch asked for: on the way to ``config.epochs``, so that "half-way" means half-way on the
    cosine of the whole run.

    Args:
        config: the run; in float32 and on one device.
        epochs: increasing numbers from 0 to ``config.epochs``.

    Raises:
        ValueError: epochs or config are not as above.
        FloatingPointError: the training loss became infinite or NaN.
    """
    increasing = len(epochs) > 0 and list(epochs) == sorted(set(epochs))
    if not increasing or epochs[0] < 0 or epochs[-1] > config.epochs:
        raise ValueError(
            f"epochs must be increasing numbers from 0 to {config.epochs}, got {epochs!r}"
        )
    if config.precision != "32-true" or config.devices != 1:
        raise ValueError(
            "precision must be '32-true' and devices 1, got "
            f"{config.precision!r} and {config.devices}"
        )
    images, sizes = _training_data(config)
    fabric = Fabric(accelerator=config.accelerator, devices=1)
    learner = Learner(fabric, config, images, sizes)
    for epoch in range(epochs[-1] + 1):
        if epoch in epochs:
            yield epoch, copy.deepcopy(learner.network)
        if epoch < epochs[-1]:
            learner.train_epoch(epoch)


def finished_run(
    folder: str | Path, data_root: str | None = None
) -> tuple[RunConfig, list[tuple[int, nn.Module]]]:
    """Configuration, first and last network of a run that :func:`patlib.train` left in a folder.

    Args:
        folder: the run's ``output_dir``, or its ``last.ckpt``.
        data_root: where its data lie now; None takes the folder that the run read from.

    Raises:
        FileNotFoundError, ValueError: see :func:`patlib.load_model`.
    """
    last, content = load_model(folder)
    settings = {**content["config"], "device": "auto", "devices": 1, "precision": "32-true"}
    config = RunConfig(**settings | ({"data_root": data_root} if data_root else {}))
    states = [*training_states(config, [0]), (len(content["curves"]), last)]
    return config, states


def _training_data(config: RunConfig) -> tuple[SplitTensors, Tensor]:
    """Training images on the device of the run, and the pixels of each class in each, (N, L)."""
    dataset = open_split(config, "train")
    arrays = load_arrays(dataset)
    sizes = class_sizes(arrays, dataset.num_classes)
    return SplitTensors(arrays, torch.device(config.accelerator)), sizes
