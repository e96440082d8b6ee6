"""A user's own images and masks."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
import yaml
from PIL import Image

from patlib.data.dataset import (
    IGNORE_INDEX,
    SPLITS,
    Sample,
    SegmentationDataset,
    by_name,
    cut_80_10_10,
)
from patlib.data.images import check_image_size, open_image, open_mask

CLASSES = "classes.yaml"
KEYS = ("classes", "void", "image_size")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class Folder(SegmentationDataset):
    """Your own data: ``images/``, ``masks/``, and a ``classes.yaml`` that says what masks mean.

    A mask is a PNG file with one channel of 8 bits (or a palette) and the name of its image:
    ``images/a.jpg`` and ``masks/a.png``, or in folders ``images/b/a.jpg`` and ``masks/b/a.png``.
    The file ``classes.yaml``::

        classes: [road, car, sign]     # the masks hold 0, 1, 2
        void: [255]                    # optional: mask values of unlabelled pixels
        image_size: [256, 256]         # optional: (H, W), where image_size is not given

    or, where the masks hold other values, ``classes: {7: road, 26: car, 20: sign}``; or, where they
    hold colours, ``classes: {"#804080": road, "#00008e": car}`` and ``void: ["#000000"]``. The
    classes 0 ... L-1 are numbered in the order of the file.
    :func:`patlib.data.folder.draft_classes` writes a first version.

    Splits are folders: ``images/train``, ``images/test`` and, if there is one,
    ``images/validation``, and the same in ``masks``. Without such folders the images, those in
    other folders included, are cut 80 / 10 / 10 % with seed 0, as by ``split_scheme="paper"``.

    Raises:
        ValueError: also if ``classes.yaml`` is wrong, or if the size of the images is neither
            given nor written there.
    """

    name = "folder"
    label = "own images"
    default_size = None
    layout = (
        "Expected in data_root:\n"
        "  images/a.jpg   or images/train/a.jpg ...  "
        f"({', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)})\n"
        "  masks/a.png    or masks/train/a.png ...   (train, test, and perhaps validation)\n"
        "  classes.yaml   classes: [road, car]       what the mask values 0, 1, ... mean, or\n"
        "                 classes: {7: road, 26: car}   or, for colours,\n"
        '                 classes: {"#804080": road, "#00008e": car}\n'
        "                 void: [255]                optional: mask values of unlabelled pixels\n"
        "                 image_size: [256, 256]     optional: height and width"
    )

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        image_size: tuple[int, int] | None = None,
        split_scheme: str = "official",
        void: str = "ignore",
    ):
        self.root = self._find_root(root)
        file = self.root / CLASSES
        if not file.is_file():
            raise self._incomplete(f"there is no {CLASSES} (patlib compare drafts one)")
        self.class_names, self.labels, self.default_size, self.colored = read_classes(file)
        if image_size is None and self.default_size is None:
            raise ValueError(
                f"image_size must be given as (H, W), or written as image_size: [H, W] into {file},"
                " got neither"
            )
        super().__init__(root, split, image_size, split_scheme, void)

    @property
    def mask_values(self) -> tuple[int, ...] | tuple[str, ...] | None:
        values = super().mask_values
        return tuple(map(color_text, values)) if values and self.colored else values

    def official_splits(self) -> dict[str, list[Sample]]:
        entries = [f for f in self._folder("images").iterdir() if not f.name.startswith(".")]
        self._folder("masks")
        parts = sorted(f.name for f in entries if f.is_dir())
        if not set(parts) & set(SPLITS):
            return cut_80_10_10(self._part(""))
        if unknown := sorted(set(parts) - set(SPLITS)):
            raise self._incomplete(
                f"a folder in images/ must be one of {', '.join(SPLITS)}, got {unknown[0]!r}"
            )
        if loose := sorted(f.name for f in entries if f.is_file()):
            raise self._incomplete(f"images/{loose[0]} lies beside the folders of the splits")
        for wanted in ("train", "test"):
            if wanted not in parts:
                raise self._incomplete(f"there is images/{parts[0]}/, but no images/{wanted}/")
        return {part: self._part(f"{part}/") for part in parts}

    def _part(self, part: str) -> list[Sample]:
        files = (self._named(kind, part) for kind in ("images", "masks"))
        return self._pair(*files, f"images/{part} and masks/{part}")

    def _named(self, kind: str, part: str) -> dict[str, Path]:
        """The images or masks of a part, at any depth, by their path without suffix."""
        folder = self._folder(f"{kind}/{part}")
        files = list_files(folder, IMAGE_SUFFIXES if kind == "images" else (".png",))
        return by_name(files, lambda file: f"{part}{path_in(folder, file)}")

    def read(self, sample: Sample) -> tuple[Image.Image, np.ndarray]:
        if not self.colored:
            return super().read(sample)
        return open_image(sample.image), pack_colors(open_image(sample.mask))

    def _map_labels(self, mask: np.ndarray, sample: Sample) -> np.ndarray:
        if not self.colored:
            return super()._map_labels(mask, sample)
        known = np.array(sorted(self.labels))
        place = np.searchsorted(known, mask).clip(max=len(known) - 1)
        if (unknown := known[place] != mask).any():
            colors = [color_text(c) for c in np.unique(mask[unknown])[:8].tolist()]
            raise ValueError(
                f"{sample.mask}: the colours of a mask must be in {CLASSES}, got {colors}"
            )
        return np.array([self.labels[c] for c in known.tolist()], np.uint8)[place]


def list_files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files with these suffixes at any depth, those hidden or in hidden folders left out."""
    return [
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def path_in(folder: Path, file: Path) -> str:
    """The path of a file in a folder, without its suffix: ``"b/a"``."""
    return file.relative_to(folder).with_suffix("").as_posix()


def pack_colors(image: Image.Image) -> np.ndarray:
    """Colours as numbers, 65536 red + 256 green + blue: int64 (H, W)."""
    return np.asarray(image).astype(np.int64) @ np.array([65536, 256, 1])


def color_text(color: int) -> str:
    """A packed colour as it stands in ``classes.yaml``: ``"#804080"``."""
    return f"#{color:06x}"


def mask_values(file: Path) -> tuple[bool, Counter]:
    """Whether a mask holds colours, and its values, colours as text, with their pixels.

    Raises:
        ValueError: it cannot be read.
    """
    mask = open_mask(file)
    colored = mask.ndim == 3 and mask.shape[-1] >= 3
    if colored:
        mask = pack_colors(open_image(file))
    elif mask.ndim == 3:  # grey with transparency
        mask = mask[..., 0]
    values, pixels = np.unique(mask.astype(np.int64), return_counts=True)
    texts = map(color_text, values.tolist()) if colored else values.tolist()
    return colored, Counter(dict(zip(texts, pixels.tolist(), strict=True)))


def draft_classes(
    values: Mapping[int | str, int], image_size: tuple[int, int] | None = None
) -> str:
    """The text of a first ``classes.yaml``, from what the masks hold, to be edited.

    Each value or colour is a class with a name such as ``class_7``, the commonest first; 255 is
    void if there are two others.

    Args:
        values: value, or colour as text, -> pixels, of all masks.
        image_size: (H, W) to write into it.

    Raises:
        ValueError: values and colours together, fewer than two, or more than there can be.
    """
    kinds = {type(value) for value in values}
    if len(kinds) > 1:
        raise ValueError("masks must all hold values, or all colours, got both")
    void = [255] if 255 in values and len(values) > 2 else []
    classes = sorted(values.keys() - set(void), key=lambda value: (-values[value], value))
    if not 2 <= len(classes) <= IGNORE_INDEX - 1:
        raise ValueError(
            f"masks must hold 2 to {IGNORE_INDEX - 1} different values or colours, got "
            f"{len(classes)} (many: they may be photographs, or were stored as JPEG or resized)"
        )
    if kinds == {int} and max(classes) > 255:
        raise ValueError(f"mask values must be integers from 0 to 255, got {max(classes)}")
    total = sum(values.values())
    lines = ["# A draft, from the masks. Names are up to you; move what is no class into void."]
    lines.append("classes:")
    for value in classes:
        key, name = (f'"{value}"', value[1:]) if isinstance(value, str) else (value, value)
        lines.append(f"  {key}: class_{name}  # {100 * values[value] / total:.2g} % of the pixels")
    lines.append(f"void: {void}")
    if image_size is not None:
        lines.append(f"image_size: [{image_size[0]}, {image_size[1]}]  # height, width in pixels")
    return "\n".join(lines) + "\n"


def read_classes(
    file: Path,
) -> tuple[tuple[str, ...], dict[int, int], tuple[int, int] | None, bool]:
    """Class names, mask value -> class (255 for void), and (H, W) or None, of a classes.yaml.

    The last says whether the values are colours, packed as by :func:`pack_colors`.

    Raises:
        ValueError: the file is wrong; the message names it and the key.
    """

    def refuse(what: object) -> NoReturn:
        raise ValueError(f"{file}: {what}.\n{Folder.layout}")

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        refuse(f"it must be YAML ({error})")
    if not isinstance(content, dict) or "classes" not in content:
        refuse("the key 'classes' is missing")
    if unknown := [key for key in content if key not in KEYS]:
        refuse(f"a key must be one of {', '.join(KEYS)}, got {unknown[0]!r}")

    classes, void = content["classes"], content.get("void", [])
    if isinstance(classes, list):
        classes = dict(enumerate(classes))
    names = list(classes.values()) if isinstance(classes, dict) else []
    for name in names:
        # YAML reads a bare on, off, yes or no as true or false.
        if not isinstance(name, str):
            refuse(
                "classes must be names, or mask value: name (a number, or a word such as on, needs "
                f"quotes to be a name), got {name!r}"
            )
    if "void" in names:
        refuse("classes must not contain 'void': write its mask values into void")
    # One is left for void as a class, and 255 marks ignored pixels.
    if not 2 <= len(set(names)) == len(names) <= IGNORE_INDEX - 1:
        refuse(
            f"classes must be 2 to {IGNORE_INDEX - 1} different names, got {len(names)} names, "
            f"{len(set(names))} of them different"
        )
    if not isinstance(void, list):
        refuse(f"void must be a list of mask values, such as [255], got {void!r}")
    colored = any(isinstance(v, str) and v.startswith("#") for v in [*classes, *void])
    for key, values in {"classes": classes, "void": void}.items():
        for value in values:
            if colored and not (isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value)):
                refuse(f"{key}: colours must all be written as '#804080', got {value!r}")
            if not colored and (type(value) is not int or not 0 <= value <= 255):
                refuse(f"{key}: mask values must be integers from 0 to 255, got {value!r}")
    if both := sorted(set(classes) & set(void)):
        refuse(f"void must not contain {both[0]}, the mask value of class {classes[both[0]]!r}")
    labels = {value: index for index, value in enumerate(classes)}
    labels |= dict.fromkeys(void, IGNORE_INDEX)
    if colored:
        packed = {int(value[1:], 16): index for value, index in labels.items()}
        if len(packed) < len(labels):
            refuse("a colour must stand once, whether in capitals or not")
        labels = packed
    size = content.get("image_size")
    try:
        size = size if size is None else check_image_size(size)
        return tuple(names), labels, size, colored
    except ValueError as error:
        refuse(error)
