"""A user's own network and data, in the form that training takes."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from patlib.data import IGNORE_INDEX, DecodedSplit, SegmentationDataset, load_arrays
from patlib.data.dataset import SPLITS

CUSTOM = "own:"  # before the class of what patlib did not build, in the settings of a run


def own_name(thing: object) -> str:
    """The name of an object's class in records, such as ``"own:mypackage.data.Leaves"``."""
    return f"{CUSTOM}{type(thing).__module__}.{type(thing).__qualname__}"


def check_own(
    model: Any, datasets: Any, dataset: str, data_params: Mapping, model_params: Mapping
) -> None:
    """Refuse a network or data of a wrong kind, and settings that they take the place of.

    Raises:
        ValueError: the message names the argument.
    """
    if model is not None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch.nn.Module, got {model!r}")
        if model_params:
            raise ValueError(
                "model_params must be empty where a model is given, which has its parameters, got "
                f"{dict(model_params)!r}"
            )
    if datasets is not None:
        if not isinstance(datasets, Mapping) or set(datasets) != set(SPLITS):
            given = sorted(datasets) if isinstance(datasets, Mapping) else datasets
            raise ValueError(
                f"datasets must be a dict with {', '.join(map(repr, SPLITS))}, got {given!r}"
            )
        if dataset != "synthetic" or data_params:
            raise ValueError(
                "dataset, data_root and data_params must be left out where datasets are given, got "
                f"dataset={dataset!r} and data_params={dict(data_params)!r}"
            )


def fingerprint_model(model: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of the parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def check_logits(model: nn.Module, num_classes: int, image_size: tuple[int, int]) -> None:
    """Refuse a network that does not map (1, 3, H, W) to logits (1, L, H, W)."""
    was_training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    logits = model.eval()(torch.zeros(1, 3, *image_size, device=device))
    model.train(was_training)
    wanted = (1, num_classes, *image_size)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model must return a tensor of logits (B, L, H, W), of shape {wanted} for an image of "
            f"(1, 3, {image_size[0]}, {image_size[1]}), got {given}"
        )


def decode_datasets(
    datasets: Mapping[str, Dataset],
    image_size: tuple[int, int] | None = None,
    progress: Callable[..., Iterable[Any]] = lambda items, **_: items,
) -> tuple[dict[str, DecodedSplit], tuple[str, ...]]:
    """Read data sets once, into the arrays that training works on.

    Args:
        datasets: ``"train"``, ``"validation"`` and ``"test"``, each with a length, that give
            ``image, target``: floating point (3, H, W) in [0, 1], rounded to 8 bits a channel
            here, and int64 (H, W), 0 ... L-1 or 255 for ignored pixels. All of one size. The
            attribute ``class_names`` of the training part, if there is one, names the classes;
            else they have their numbers.
        image_size: the size (H, W) that they must have; None for any.
        progress: wraps the iteration over the images.

    Returns:
        The arrays of each split, and the names of the classes 0 ... L-1.

    Raises:
        ValueError: a part is empty, or an image or target is something else; the message says
            which.
    """
    arrays = {}
    for split in SPLITS:
        part = datasets[split]
        if isinstance(part, SegmentationDataset):
            arrays[split] = load_arrays(part, progress=progress)
        else:
            arrays[split] = _decode(part, f"datasets[{split!r}]", progress)
    sizes = {split: part.images.shape[1:3] for split, part in arrays.items()}
    if len({*sizes.values(), *([tuple(image_size)] if image_size else [])}) > 1:
        wanted = f", image_size={tuple(image_size)}" if image_size else ""
        raise ValueError(f"datasets must have images of one size (H, W){wanted}, got {sizes}")
    labels = np.flatnonzero(sum(part.histogram for part in arrays.values())[:IGNORE_INDEX])
    if not len(labels):
        raise ValueError("datasets must have valid pixels, got masks of 255 alone")
    given = getattr(datasets["train"], "class_names", None)
    names = tuple(map(str, range(labels[-1] + 1) if given is None else given))
    if labels[-1] >= len(names):
        raise ValueError(
            f"class_names of datasets['train'] must name every class, got {len(names)} names and "
            f"the label {labels[-1]}"
        )
    return arrays, names


def _decode(dataset: Any, name: str, progress: Callable) -> DecodedSplit:
    try:
        length = len(dataset)
    except TypeError as error:
        raise ValueError(f"{name} must have a length ({error})") from error
    if not length:
        raise ValueError(f"{name} must hold images, got none")
    images = masks = None
    for i in progress(range(length), total=length, desc=f"reading {name}"):
        image, target = _check_sample(dataset[i], f"{name}[{i}]")
        if images is None:
            images = np.empty((length, *target.shape, 3), np.uint8)
            masks = np.empty((length, *target.shape), np.uint8)
        if target.shape != masks.shape[1:]:
            raise ValueError(
                f"{name} must have images of one size (H, W), got {tuple(masks.shape[1:])} and, "
                f"for {i}, {tuple(target.shape)}"
            )
        images[i] = (255 * image.float()).round().byte().permute(1, 2, 0).numpy()
        masks[i] = target.byte().numpy()
    histogram = sum(np.bincount(mask.ravel(), minlength=256) for mask in masks)
    digest = hashlib.sha256(images.data)
    digest.update(masks.data)
    return DecodedSplit(images, masks, histogram, digest.hexdigest())


def _check_sample(sample: Any, where: str) -> tuple[Tensor, Tensor]:
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise ValueError(f"{where} must be a pair (image, target), got {type(sample).__name__}")
    image, target = sample
    shaped = (
        isinstance(image, Tensor)
        and isinstance(target, Tensor)
        and image.is_floating_point()
        and target.dtype == torch.int64
        and image.shape == (3, *target.shape)
    )
    if not shaped:
        given = [
            f"{t.dtype} {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            for t in sample
        ]
        raise ValueError(
            f"{where} must be an image, floating point (3, H, W), and a target, int64 (H, W), got "
            f"{' and '.join(given)}"
        )
    if not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            f"{where}: an image must be in [0, 1] (normalisation belongs into the network), got "
            f"{image.min():g} ... {image.max():g}"
        )
    if target.min() < 0 or target.max() > IGNORE_INDEX:
        raise ValueError(
            f"{where}: labels must be 0 ... L-1, or 255 for ignored pixels, got "
            f"{target.min()} ... {target.max()}"
        )
    return image.cpu(), target.cpu()
