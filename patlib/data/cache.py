"""Decode and resize once: a data set as two uint8 arrays, kept on disk."""

import errno
import glob
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
from filelock import FileLock

from patlib.data.dataset import SegmentationDataset
from patlib.files import make_folder, sync_file, sync_folder

# Raise when arrays written by an earlier version must not be read any more.
CACHE_VERSION = 4


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
            ``~/.cache/patlib``. Cached arrays are mapped into memory. All of an entry is compared
            with its SHA-256 each time it is opened: 1.7 s for 1 GB of images and masks, measured on
            one core of an AMD EPYC, which computes SHA-256 in hardware, and 0.1 s for the training
            images of CamVid at 180x240. The entries of earlier versions are left
            alone and not read.
        progress: wraps the iteration over samples while decoding, for a progress bar.

    Raises:
        ValueError: a file is damaged or a mask has an undefined value (see SegmentationDataset), or
            the entry of the cache is damaged.
        OSError: the cache cannot be written to.
    """
    if dataset.drawn:
        return _decode(dataset, progress)
    cache_dir = Path(cache_dir or os.environ.get("PATLIB_CACHE") or "~/.cache/patlib").expanduser()
    entry = cache_dir / f"{dataset.name}-{dataset.split}-{_key(dataset)}"
    if not entry.is_dir():
        try:
            with whole_folder(entry) as beside:
                if beside:
                    _write(beside, _decode(dataset, progress), entry.name)
        except FileNotFoundError:  # of an image
            raise
        except OSError as error:
            what = f"{error.strerror or error}: the cache (PATLIB_CACHE names another folder)"
            raise OSError(error.errno or errno.EIO, what, str(entry)) from error
    return _read(entry, dataset)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path | None]:
    """A hidden folder to write into, renamed to ``folder`` when the block ends without an error.

    Its files are on the disk before it gets its name. A file ``.lock`` beside it lets one process
    at a time write, which removes what killed ones left: the others wait, and get None if the
    folder is there then.
    """
    make_folder(folder.parent)
    with FileLock(folder.parent / ".lock"):
        if folder.is_dir():
            yield None
            return
        for left in folder.parent.glob(f".{glob.escape(folder.name)}-*"):
            shutil.rmtree(left, ignore_errors=True)
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            yield beside
            for path in (*beside.rglob("*"), beside):
                sync_folder(path) if path.is_dir() else sync_file(path)
            beside.chmod(0o755)
            beside.rename(folder)
            sync_folder(folder.parent)
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
    return DecodedSplit(images, masks, _count(masks), _fingerprint(images, masks))


def _fingerprint(images: np.ndarray, masks: np.ndarray) -> str:
    digest = hashlib.sha256(images.data)
    digest.update(masks.data)
    return digest.hexdigest()


def _count(masks: np.ndarray) -> np.ndarray:
    """Pixels of each value, int64 (256,)."""
    # By image: counting takes eight bytes for each pixel that it is given at once.
    return sum(np.bincount(mask.ravel(), minlength=256) for mask in masks)


def _write(folder: Path, split: DecodedSplit, name: str) -> None:
    np.save(folder / "images.npy", split.images)
    np.save(folder / "masks.npy", split.masks)
    # With its name: an entry that was renamed holds other files than it says.
    (folder / "sha256").write_text(f"{split.fingerprint} {name}")


def _read(entry: Path, dataset: SegmentationDataset) -> DecodedSplit:
    shape = (len(dataset), *dataset.image_size)
    try:
        # Mode "c": what is written to the arrays stays in memory, the files never change.
        images, masks = (np.load(entry / f"{k}.npy", mmap_mode="c") for k in ("images", "masks"))
        if (images.shape, masks.shape) != ((*shape, 3), shape):
            raise ValueError(f"the arrays have the shapes {images.shape} and {masks.shape}")
        fingerprint = _fingerprint(images, masks)
        if (entry / "sha256").read_text() != f"{fingerprint} {entry.name}":
            raise ValueError("the arrays do not have the stored SHA-256, or are of another entry")
        return DecodedSplit(images, masks, _count(masks), fingerprint)
    except Exception as error:  # of a broken header NumPy raises many kinds
        raise ValueError(
            f"the cache entry {entry} is damaged ({error}). Remove it, and it is made again"
        ) from error
