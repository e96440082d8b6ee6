"""Base of the data sets: splits, label maps, resizing, and checks of files."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image

from patlib.checks import check_choice
from patlib.data.images import check_image_size, open_image, open_mask, resize

SPLITS = ("train", "validation", "test")
SPLIT_SCHEMES = ("official", "grouped", "paper")
VOID_MODES = ("ignore", "class")
IGNORE_INDEX = 255


class Sample(NamedTuple):
    """One image and its mask, by name and by file (None if drawn)."""

    id: str
    image: Path | None
    mask: Path | None


class SegmentationDataset(torch.utils.data.Dataset):
    """Images with a label for every pixel: ``image, target = dataset[i]``.

    ``image`` is float32 (3, H, W) in [0, 1]; ``target`` is int64 (H, W) with the valid classes
    0 ... L-1 and 255 for ignored pixels. Images are resized bilinearly (antialiased), masks by
    nearest neighbour only. The EXIF orientation of images and masks is applied.

    Args:
        root: folder that holds the data in its official layout (``nyuv2``: or the file itself).
        split: ``"train"``, ``"validation"`` or ``"test"``. Where the official distribution has no
            validation part, 10 % of its training part are held out for it (seed 0).
        image_size: (H, W) in pixels; None takes the size the paper uses (``folder``: the one in
            its ``classes.yaml``).
        split_scheme: ``"official"``; ``"grouped"``: the same test part, and a validation part of
            about 10 % cut from the official training part so that the two share no room or drive
            (see :meth:`groups`; an official validation part is left out), to choose settings by;
            or ``"paper"``: 80 / 10 / 10 % of all images together, drawn with seed 0 (Section 5 of
            the paper).
        void: what becomes of unlabelled pixels: ``"ignore"`` maps them to 255, ``"class"`` makes
            them the last class, as the paper does. No effect on a data set without such pixels.

    Raises:
        ValueError: an argument is not allowed, a split would be empty, or (when read) a file is
            damaged, an image and its mask differ in size, or a mask has an undefined value.
        FileNotFoundError: the folder is missing or incomplete; the message says where the data
            come from and which layout is expected.
    """

    name: ClassVar[str]
    #: name in tables and figures
    label: ClassVar[str]
    #: drawn instead of read from files; root must be None
    drawn: ClassVar[bool] = False
    #: whether masks can have unlabelled pixels
    has_void: ClassVar[bool] = True
    class_names: Sequence[str]
    #: value in the mask file -> class, or 255 for unlabelled
    labels: Mapping[int, int]
    #: the paper's (H, W)
    default_size: ClassVar[tuple[int, int] | None]
    #: source of the data and the expected layout of the files
    layout: ClassVar[str]

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        image_size: tuple[int, int] | None = None,
        split_scheme: str = "official",
        void: str = "ignore",
    ):
        self.split = check_choice("split", split, SPLITS)
        self.split_scheme = check_choice("split_scheme", split_scheme, SPLIT_SCHEMES)
        check_choice("void", void, VOID_MODES)
        self.image_size = check_image_size(self.default_size if image_size is None else image_size)
        self.root = self._find_root(root)
        official = self.official_splits()
        if split_scheme == "grouped":
            official = self._held_out_by_group(official)
        self.samples = choose_split(official, split, split_scheme)
        if not self.samples:
            raise self._empty(sum(map(len, official.values())))
        missing = [f for s in self.samples for f in s[1:] if f is not None and not f.is_file()]
        if missing:
            raise self._incomplete(f"{len(missing)} file(s) missing, the first is {missing[0]}")
        self.class_names = tuple(self.class_names)
        if void == "class" and IGNORE_INDEX in self.labels.values():
            last = len(self.class_names)
            self.labels = {v: last if c == IGNORE_INDEX else c for v, c in self.labels.items()}
            self.class_names += ("void",)
        self.num_classes = len(self.class_names)

    # -- what a data set adds ----------------------------------------------------------------------

    def official_splits(self) -> dict[str, list[Sample]]:
        """The samples of each official part, in a fixed order."""
        raise NotImplementedError

    def read(self, sample: Sample) -> tuple[Image.Image, np.ndarray]:
        """The RGB image and the mask (H, W) of one sample, as stored."""
        return open_image(sample.image), open_mask(sample.mask)

    def groups(self, samples: Sequence[Sample]) -> list[str | int]:
        """What each image shares with those of the same room, drive or city; else its number."""
        return list(range(len(samples)))

    def held_out_groups(self, groups: Sequence[str | int]) -> set[str | int]:
        """The groups that are the validation part under ``split_scheme="grouped"``.

        Every tenth group, from the fifth, in the order of the images.
        """
        return set(list(dict.fromkeys(groups))[4::10])

    def _held_out_by_group(self, official: Mapping[str, list[Sample]]) -> dict[str, list[Sample]]:
        groups = self.groups(official["train"])
        held_out = self.held_out_groups(groups)
        parts = {"train": [], "validation": [], "test": official["test"]}
        for sample, group in zip(official["train"], groups, strict=True):
            parts["validation" if group in held_out else "train"].append(sample)
        return parts

    @property
    def mask_values(self) -> tuple[int, ...] | tuple[str, ...] | None:
        """Of each class its value in the mask files; None if one has several values, or no files.

        Where masks hold colours, these, such as ``"#804080"``.
        """
        labels = list(self.labels.values())
        if self.drawn or any(labels.count(label) != 1 for label in range(self.num_classes)):
            return None
        values = {label: value for value, label in self.labels.items()}
        return tuple(values[label] for label in range(self.num_classes))

    # -- access ------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.samples)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (H, W, 3) and classes uint8 (H, W) of one sample, resized and mapped."""
        sample = self.samples[index]
        image, mask = self.read(sample)
        if mask.ndim != 2:
            raise ValueError(
                f"{sample.mask}: a mask must have one channel of class ids, got shape {mask.shape}"
            )
        if (image.height, image.width) != mask.shape:
            raise ValueError(
                f"{sample.mask}: image and mask must have the same size (H x W, EXIF orientation "
                f"applied), got {image.height}x{image.width} and {mask.shape[0]}x{mask.shape[1]}"
            )
        image, mask = resize(image, self._map_labels(mask, sample), self.image_size)
        return np.asarray(image), mask

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self.arrays(index)
        image = torch.from_numpy(image.copy()).permute(2, 0, 1).float().div_(255)
        return image, torch.from_numpy(mask.copy()).long()

    # -- checks ------------------------------------------------------------------------------------

    def _map_labels(self, mask: np.ndarray, sample: Sample) -> np.ndarray:
        lookup = np.full(257, -1, np.int16)  # the last for values from 256
        lookup[list(self.labels)] = list(self.labels.values())
        mapped = lookup[np.minimum(mask.astype(np.uint32), 256)]
        if mapped.min(initial=0) < 0:
            unknown = np.unique(mask[mapped < 0])[:8].tolist()
            raise ValueError(
                f"{sample.mask}: the mask values of {self.name!r} must be in {sorted(self.labels)},"
                f" got {unknown}"
            )
        return mapped.astype(np.uint8)

    def _find_root(self, root: str | Path | None) -> Path | None:
        if root is None:
            raise ValueError(
                f"data_root must be the folder of the data set {self.name!r}, got None\n"
                f"{self.layout}"
            )
        root = Path(root).expanduser().absolute()
        if not root.is_dir():
            raise FileNotFoundError(f"data_root must be a folder, got {str(root)!r}\n{self.layout}")
        return root

    def _folder(self, name: str) -> Path:
        """A folder in the root, which must be there."""
        if not (self.root / name).is_dir():
            raise self._incomplete(f"there is no folder {name.rstrip('/')}/")
        return self.root / name

    def _pair(self, images: dict[str, Path], masks: dict[str, Path], where: str) -> list[Sample]:
        """Images and masks of the same names, in the order of the names."""
        if unmatched := images.keys() ^ masks.keys():
            raise self._incomplete(
                f"{len(unmatched)} of {where} have no counterpart, the first is {min(unmatched)}"
            )
        return [Sample(name, images[name], masks[name]) for name in sorted(images)]

    def _incomplete(self, what: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"the {self.name!r} folder {str(self.root)!r} is not complete: {what}.\n{self.layout}"
        )

    def _empty(self, images: int) -> Exception:
        if not images:
            return self._incomplete(f"no images for the split {self.split!r}")
        return ValueError(
            f"the split {self.split!r} of {self.name!r} must have an image, but {images} image(s) "
            f"in {str(self.root)!r} are too few for all splits: 8 can be cut into 80 / 10 / 10 %, "
            "and 10 % of a training part of 6 held out for validation; fewer must be sorted into "
            f"train, validation and test by hand.\n{self.layout}"
        )


def by_name(
    files: Iterable[Path], name: Callable[[Path], str] = lambda file: file.stem
) -> dict[str, Path]:
    """Files by name, without hidden ones.

    Names are compared in Unicode's composed form (NFC): some systems write a decomposed one (NFD).
    """
    named: dict[str, Path] = {}
    for file in sorted(f for f in files if not f.name.startswith(".")):
        key = unicodedata.normalize("NFC", name(file))
        if key in named:
            raise ValueError(f"{named[key]} and {file.name} have the same name")
        named[key] = file
    return named


def choose_split(
    official: Mapping[str, list[Sample]], split: str, split_scheme: str
) -> list[Sample]:
    """The samples of a split: the official part, or a seeded cut of everything."""
    if split_scheme == "paper":
        return cut_80_10_10([sample for part in official.values() for sample in part])[split]
    if split == "test" or "validation" in official:
        return official[split]
    # The distribution has no validation part: hold out 10 % of its training part.
    train = official["train"]
    held_out = set(np.random.default_rng(0).permutation(len(train))[: round(0.1 * len(train))])
    return [s for i, s in enumerate(train) if (i in held_out) == (split == "validation")]


def cut_80_10_10(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """80 / 10 / 10 % of the samples, drawn with seed 0; their order does not matter."""
    samples = sorted(samples)
    order = np.random.default_rng(0).permutation(len(samples))
    parts = np.split(order, [round(0.8 * len(order)), round(0.9 * len(order))])
    return {
        split: [samples[i] for i in sorted(part)] for split, part in zip(SPLITS, parts, strict=True)
    }
