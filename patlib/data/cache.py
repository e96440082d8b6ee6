"""Decode and resize once: a data set as two uint8 arrays, kept on disk."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patlib.data.dataset import SegmentationDataset

# Raise when arrays written by an earlier version must not be read any more.
CACHE_VERSION = 3


class DecodedSplit(NamedTuple):
    """One split of a data set, decoded and resized.

    Attributes:
        images: uint8 (N, H, W, 3).
        masks: classes, 255 for ignored pixels, uint8 (N, H, W).
        histogram: pixels of each value in the masks, int64 (256,).
        fingerprint: SHA-256 of images and masks.
    """

    images: np.ndarray
    masks: np.ndarray
    histogram: np.ndarray
    fingerprint: str


def load_arrays(
    dataset: SegmentationDataset,
    cache_dir: str | Path | None = None,
    progress: Callable[..., Iterable[Any]] = lambda items, **_: items,
) -> DecodedSplit:
    """The arrays of a data set, from the cache when its files and settings have not changed.

    Args:
        dataset: what to read. A data set without files (drawn scenes) is never cached.
        cache_dir: folder of the cache; by default the environment variable ``PATLIB_CACHE``, else
            ``~/.cache/patlib``. Cached arrays are mapped into memory and compared with their
            fingerprint.
        progress: wraps the iteration over samples while decoding, for a progress bar.

    Raises:
        ValueError: a file is damaged or a mask has an undefined value (see SegmentationDataset), or
            the entry of the cache is damaged.
    """
    if dataset.drawn:
        return _decode(dataset, progress)
    cache_dir = Path(cache_dir or os.environ.get("PATLIB_CACHE") or "~/.cache/patlib").expanduser()
    entry = cache_dir / f"{dataset.name}-{dataset.split}-{_key(dataset)}"
    if not entry.is_dir():
        _write(entry, _decode(dataset, progress))
    return _read(entry)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into, renamed to ``folder`` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield beside
        beside.chmod(0o755)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _key(dataset: SegmentationDataset) -> str:
    """Hash of everything the arrays depend on: settings, and each file's name, size and date."""
    stats = {str(f): f.stat() for s in dataset.samples for f in (s.image, s.mask)}
    settings = {
        "version": CACHE_VERSION,
        "name": dataset.name,
        "image_size": dataset.image_size,
        "labels": sorted(dataset.labels.items()),
        "samples": [sample.id for sample in dataset.samples],
        "files": [(f, s.st_size, s.st_mtime_ns) for f, s in stats.items()],
    }
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _decode(dataset: SegmentationDataset, progress: Callable[..., Iterable[Any]]) -> DecodedSplit:
    n, (height, width) = len(dataset), dataset.image_size
    images = np.empty((n, height, width, 3), np.uint8)
    masks = np.empty((n, height, width), np.uint8)
    # Threads suffice: decoding and resizing release the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(dataset.arrays, range(n))
        decoded = progress(decoded, total=n, desc=f"reading {dataset.name} {dataset.split}")
        for i, (image, mask) in enumerate(decoded):
            images[i], masks[i] = image, mask
    # By image: counting takes eight bytes for each pixel that it is given at once.
    histogram = sum(np.bincount(mask.ravel(), minlength=256) for mask in masks)
    return DecodedSplit(images, masks, histogram, _fingerprint(images, masks))


def _fingerprint(images: np.ndarray, masks: np.ndarray) -> str:
    digest = hashlib.sha256(images.data)
    digest.update(masks.data)
    return digest.hexdigest()


def _write(entry: Path, split: DecodedSplit) -> None:
    try:
        with whole_folder(entry) as beside:
            np.save(beside / "images.npy", split.images)
            np.save(beside / "masks.npy", split.masks)
            np.save(beside / "histogram.npy", split.histogram)
            (beside / "sha256").write_text(split.fingerprint)
    except OSError:
        if not entry.is_dir():  # else another process was first, with an equal entry
            raise


def _read(entry: Path) -> DecodedSplit:
    try:
        # Mode "c": what is written to the arrays stays in memory, the files never change.
        images, masks = (np.load(entry / f"{k}.npy", mmap_mode="c") for k in ("images", "masks"))
        split = DecodedSplit(
            images, masks, np.load(entry / "histogram.npy"), (entry / "sha256").read_text()
        )
        if _fingerprint(images, masks) != split.fingerprint:
            raise ValueError("the arrays do not have the stored SHA-256")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"the cache entry {entry} is damaged, remove it ({error})") from error
    return split
