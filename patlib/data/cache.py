"""Decode and resize once: a data set as two uint8 arrays, kept on disk."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from patlib.data.dataset import SegmentationDataset

# Raise when arrays written by an earlier version must not be read any more.
CACHE_VERSION = 2


class Arrays(NamedTuple):
    """A whole data set, decoded and resized.

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
    progress: Callable = lambda items, **_: items,
) -> Arrays:
    """The arrays of a data set, from the cache when its files and settings have not changed.

    Args:
        dataset: what to read. A data set without files (drawn scenes) is never cached.
        cache_dir: folder of the cache; by default the environment variable ``PATLIB_CACHE``, else
            ``~/.cache/patlib``. Cached arrays are mapped into memory, not read.
        progress: wraps the iteration over samples while decoding, for a progress bar.

    Raises:
        ValueError: a file is broken or a mask has an undefined value (see SegmentationDataset).
    """
    key = _key(dataset)
    if key is None:
        return _decode(dataset, progress)
    cache_dir = Path(cache_dir or os.environ.get("PATLIB_CACHE") or "~/.cache/patlib").expanduser()
    entry = cache_dir / f"{dataset.name}-{dataset.split}-{key}"
    if not entry.is_dir():
        _write(entry, _decode(dataset, progress))
    # Mode "c": what is written to the arrays stays in memory, the files never change.
    return Arrays(
        np.load(entry / "images.npy", mmap_mode="c"),
        np.load(entry / "masks.npy", mmap_mode="c"),
        np.load(entry / "histogram.npy"),
        (entry / "sha256").read_text(),
    )


def _key(dataset: SegmentationDataset) -> str | None:
    """Hash of everything the arrays come from: settings, and each file's name, size and date."""
    files = dataset.files()
    if not files:
        return None
    stats = {str(f): f.stat() for f in files}
    settings = {
        "version": CACHE_VERSION,
        "name": dataset.name,
        "image_size": dataset.image_size,
        "labels": sorted(dataset.labels.items()),
        "samples": [sample.id for sample in dataset.samples],
        "files": [(f, s.st_size, s.st_mtime_ns) for f, s in stats.items()],
    }
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _decode(dataset: SegmentationDataset, progress: Callable) -> Arrays:
    n, (height, width) = len(dataset), dataset.image_size
    images = np.empty((n, height, width, 3), np.uint8)
    masks = np.empty((n, height, width), np.uint8)
    # Threads suffice: decoding and resizing release the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(dataset.arrays, range(n))
        try:
            for i, (image, mask) in enumerate(
                progress(decoded, total=n, desc=f"reading {dataset.name} {dataset.split}")
            ):
                images[i], masks[i] = image, mask
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    # By image: counting takes eight bytes for each pixel that it is given at once.
    histogram = sum(np.bincount(mask.ravel(), minlength=256) for mask in masks)
    digest = hashlib.sha256(images.data)
    digest.update(masks.data)
    return Arrays(images, masks, histogram, digest.hexdigest())


def _write(entry: Path, arrays: Arrays) -> None:
    """Write beside, then rename: a reader, or a second writer, never sees half an entry."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}-"))
    try:
        np.save(beside / "images.npy", arrays.images)
        np.save(beside / "masks.npy", arrays.masks)
        np.save(beside / "histogram.npy", arrays.histogram)
        (beside / "sha256").write_text(arrays.fingerprint)
        beside.chmod(0o755)
        try:
            beside.rename(entry)
        except OSError:
            if not entry.is_dir():  # another process was first: its entry is as good as ours
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
