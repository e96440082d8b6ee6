"""Data sets: images and long-tailed masks, read from their official layouts or drawn."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patlib.checks import check_choice, check_integer, check_parameters
from patlib.data.cache import DecodedSplit, load_arrays
from patlib.data.camvid import CamVid
from patlib.data.cityscapes import Cityscapes
from patlib.data.dataset import IGNORE_INDEX, SegmentationDataset
from patlib.data.folder import Folder
from patlib.data.images import open_image
from patlib.data.nyuv2 import NYUv2
from patlib.data.oxford_pet import OxfordPet
from patlib.data.samplers import SAMPLERS
from patlib.data.synthetic import Synthetic

DATASETS: dict[str, type[SegmentationDataset]] = {
    dataset.name: dataset for dataset in (Synthetic, OxfordPet, Cityscapes, NYUv2, CamVid, Folder)
}

__all__ = [
    "DATASETS",
    "IGNORE_INDEX",
    "SAMPLERS",
    "DecodedSplit",
    "SegmentationDataset",
    "build_dataset",
    "check_data_params",
    "class_sizes",
    "count_classes",
    "load_arrays",
    "open_image",
    *(dataset.__name__ for dataset in DATASETS.values()),
]


def build_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    image_size: tuple[int, int] | None = None,
    split_scheme: str = "official",
    void: str = "ignore",
    **params: Any,
) -> SegmentationDataset:
    """One split of a data set by its name: ``image, target = build_dataset("camvid", root)[0]``.

    Args:
        name: one of ``DATASETS``; ``"synthetic"`` is drawn and needs no root, ``"folder"`` reads
            your own images and masks.
        root, split, image_size, split_scheme, void: see :class:`SegmentationDataset`.
        **params: of the data set itself, see its class (``synthetic``: ``num_classes``,
            ``imbalance``, ``rare_size``, ``scene_seed``).

    Raises:
        ValueError, FileNotFoundError: see :class:`SegmentationDataset`; unknown names and
            parameters are named.
    """
    check_data_params(name, params)
    return DATASETS[name](root, split, image_size, split_scheme, void, **params)


def check_data_params(name: str, params: dict[str, Any]) -> None:
    """Raise ValueError for an unknown data set, or for a parameter that it does not have."""
    check_choice("dataset", name, tuple(DATASETS))
    shared = inspect.signature(SegmentationDataset).parameters
    own = inspect.signature(DATASETS[name]).parameters.keys() - shared.keys()
    check_parameters(f"data set {name!r}", params, own)


def count_classes(
    dataset: SegmentationDataset | DecodedSplit, num_classes: int | None = None
) -> torch.Tensor:
    """Valid pixels of each class in a data set, for the ``class_counts`` of a loss.

    Args:
        dataset: a data set, or its arrays together with ``num_classes``.

    Returns:
        int64 (L,) tensor of pixels. Ignored pixels are not counted.
    """
    if isinstance(dataset, SegmentationDataset):
        num_classes = dataset.num_classes
        dataset = load_arrays(dataset)
    return torch.from_numpy(dataset.histogram[:num_classes].copy())


def class_sizes(
    dataset: SegmentationDataset | DecodedSplit, num_classes: int | None = None
) -> torch.Tensor:
    """Valid pixels of each class in each image, for losses, their class priors and samplers.

    With ``sizes = class_sizes(dataset)``: ``sizes.sum(0)`` are the ``class_counts`` of a loss,
    ``(sizes > 0).sum(0)`` its ``class_images``, ``len(sizes)`` its ``num_images``.

    Args:
        dataset: a data set, or its arrays together with ``num_classes``.

    Returns:
        int64 (N, L) tensor of pixels. Ignored pixels are not counted.

    Raises:
        ValueError: arrays without ``num_classes``.
    """
    if isinstance(dataset, SegmentationDataset):
        num_classes = dataset.num_classes
        dataset = load_arrays(dataset)
    num_classes = check_integer("num_classes", num_classes, minimum=1, maximum=IGNORE_INDEX)
    sizes = np.empty((len(dataset.masks), num_classes), np.int64)
    # By image: counting takes eight bytes for each pixel that it is given at once.
    for image, mask in zip(sizes, dataset.masks, strict=True):
        image[:] = np.bincount(mask.ravel(), minlength=num_classes)[:num_classes]
    return torch.from_numpy(sizes)
