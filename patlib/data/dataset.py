"""What all data sets share: splits, label maps, resizing, and refusing what does not fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image

SPLITS = ("train", "validation", "test")
SPLIT_SCHEMES = ("official", "paper")
VOID_MODES = ("ignore", "class")
IGNORE_INDEX = 255


class Sample(NamedTuple):
    """One image and its mask, by name and by file."""

    id: str
    image: Path
    mask: Path


class SegmentationDataset(torch.utils.data.Dataset):
    """Images with a label for every pixel: ``image, target = dataset[i]``.

    ``image`` is float32 (3, H, W) in [0, 1]; ``target`` is int64 (H, W) with the valid classes
    0 ... L-1 and 255 for ignored pixels. Images are resized bilinearly (antialiased), masks by
    nearest neighbour only.

    Args:
        root: folder that holds the data in its official layout (``nyuv2``: or the file itself).
        split: ``"train"``, ``"validation"`` or ``"test"``. Where the official distribution has no
            validation part, 10 % of its training part are held out for it (seed 0).
        image_size: (H, W) in pixels; None takes the size the paper uses (``folder``: the one in
            its ``classes.yaml``).
        split_scheme: ``"official"``, or ``"paper"``: 80 / 10 / 10 % of all images together, drawn
            with seed 0 (Section 5 of the paper).
        void: what becomes of unlabelled pixels: ``"ignore"`` maps them to 255, ``"class"`` makes
            them the last class, as the paper does. No effect on a data set without such pixels.

    Raises:
        ValueError: an argument is not allowed, or (when read) a file is broken, an image and its
            mask differ in size, or a mask has a value that the data set does not define.
        FileNotFoundError: the folder is missing or incomplete; the message says where the data
            come from and which layout is expected.
    """

    name: ClassVar[str]
    class_names: Sequence[str]
    #: value in the mask file -> class, or 255 for unlabelled
    labels: dict[int, int]
    #: the paper's (H, W)
    default_size: ClassVar[tuple[int, int]]
    #: where the data come from and how they must lie
    layout: ClassVar[str]

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        image_size: tuple[int, int] | None = None,
        split_scheme: str = "official",
        void: str = "ignore",
    ):
        check_choice("split", split, SPLITS)
        check_choice("split_scheme", split_scheme, SPLIT_SCHEMES)
        check_choice("void", void, VOID_MODES)
        self.split = split
        self.split_scheme = split_scheme
        self.image_size = check_image_size(image_size or self.default_size)
        self.root = self._find_root(root)

        self.samples = choose_split(self.official_splits(), split, split_scheme)
        self._check_files()
        self.class_names = tuple(self.class_names)
        has_void = IGNORE_INDEX in self.labels.values()
        if void == "class" and has_void:
            void_class = len(self.class_names)
            self.labels = {
                raw: void_class if label == IGNORE_INDEX else label
                for raw, label in self.labels.items()
            }
            self.class_names += ("void",)
        self.num_classes = len(self.class_names)

    # -- what a data set adds ----------------------------------------------------------------

    def official_splits(self) -> dict[str, list[Sample]]:
        """The samples of each official part, in a fixed order."""
        raise NotImplementedError

    def read(self, sample: Sample) -> tuple[Image.Image, np.ndarray]:
        """The RGB image and the mask (H, W) uint8 of one sample, as they lie on disk."""
        image = _open(sample.image)
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ValueError(
                f"{sample.image}: an image has 8 bits a channel, not pixels of type {image.mode!r}"
            )
        return image.convert("RGB"), np.asarray(_open(sample.mask))

    def files(self) -> list[Path]:
        """Every file that the arrays come from; none if they are drawn."""
        return [f for sample in self.samples for f in (sample.image, sample.mask)]

    # -- access --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.samples)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (H, W, 3) and classes uint8 (H, W) of one sample, resized and mapped."""
        sample = self.samples[index]
        image, mask = self.read(sample)
        if mask.ndim != 2:
            raise ValueError(
                f"{sample.mask}: a mask has one channel of class ids, not shape {mask.shape}"
            )
        if (image.height, image.width) != mask.shape:
            raise ValueError(
                f"{sample.id}: the image is {image.height}x{image.width} pixels (H x W) and its "
                f"mask {mask.shape[0]}x{mask.shape[1]}; they must be equal"
            )
        image, mask = resize(image, self._map_labels(mask, sample), self.image_size)
        return np.asarray(image), mask

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self.arrays(index)
        image = torch.from_numpy(image.copy()).permute(2, 0, 1).float().div_(255)
        return image, torch.from_numpy(mask.copy()).long()

    # -- checks --------------------------------------------------------------------------------

    def _map_labels(self, mask: np.ndarray, sample: Sample) -> np.ndarray:
        lookup = np.full(256, -1, dtype=np.int16)
        lookup[list(self.labels)] = list(self.labels.values())
        mapped = lookup[mask.astype(np.uint8)] if mask.max(initial=0) < 256 else None
        if mapped is None or mapped.min(initial=0) < 0:
            unknown = sorted(set(np.unique(mask).tolist()) - set(self.labels))
            raise ValueError(
                f"{sample.mask}: mask value(s) {unknown[:8]} outside the classes of "
                f"{self.name!r}; allowed are {sorted(self.labels)}"
            )
        return mapped.astype(np.uint8)

    def _find_root(self, root: str | Path | None) -> Path | None:
        if root is None:
            raise ValueError(
                f"data_root is missing: the data set {self.name!r} reads from a folder.\n"
                f"{self.layout}"
            )
        root = Path(root).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"data_root {str(root)!r} is not a folder.\n{self.layout}")
        return root

    def _check_files(self) -> None:
        if not self.samples:
            raise self._incomplete(f"no images for the split {self.split!r}")
        missing = [f for s in self.samples for f in (s.image, s.mask) if not f.is_file()]
        if missing:
            raise self._incomplete(f"{len(missing)} file(s) missing, the first is {missing[0]}")

    def _incomplete(self, what: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"the {self.name!r} folder {str(self.root)!r} is not complete: {what}.\n{self.layout}"
        )


def choose_split(official: dict[str, list[Sample]], split: str, split_scheme: str) -> list[Sample]:
    """The samples of a split: the official part, or a seeded cut of everything."""
    if split_scheme == "paper":
        return cut_80_10_10([sample for part in official.values() for sample in part])[split]
    if split == "test" or "validation" in official:
        return official[split]
    # The distribution has no validation part: hold out 10 % of its training part.
    train = official["train"]
    held_out = set(np.random.default_rng(0).permutation(len(train))[: round(0.1 * len(train))])
    return [s for i, s in enumerate(train) if (i in held_out) == (split == "validation")]


def cut_80_10_10(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """80 / 10 / 10 % of the samples, drawn with seed 0; their order does not matter."""
    samples = sorted(samples)
    order = np.random.default_rng(0).permutation(len(samples))
    parts = np.split(order, [round(0.8 * len(order)), round(0.9 * len(order))])
    return {
        split: [samples[i] for i in sorted(part)] for split, part in zip(SPLITS, parts, strict=True)
    }


def resize(
    image: Image.Image, mask: np.ndarray, image_size: tuple[int, int]
) -> tuple[Image.Image, np.ndarray]:
    """An image (bilinear, antialiased) and its mask (nearest neighbour) in another size (H, W)."""
    height, width = image_size
    # Nearest neighbour: the pixel under the centre of each new one, in whole numbers.
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image, mask[np.ix_(rows, columns)]


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; allowed: {', '.join(map(repr, allowed))}")


def check_image_size(image_size: Sequence[int]) -> tuple[int, int]:
    size = tuple(image_size) if isinstance(image_size, Sequence) else ()
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in size)
    if len(size) != 2 or not whole or min(size) < 32:
        raise ValueError(
            f"image_size={image_size!r} is not allowed: it takes (H, W), two whole numbers of "
            "pixels from 32 upwards"
        )
    return size


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, ... for broken files
        raise ValueError(f"{path}: the image file cannot be read ({error})") from error
