"""A user's own images and masks."""

from pathlib import Path
from typing import NoReturn

import yaml

from patlib.data.dataset import (
    IGNORE_INDEX,
    SPLITS,
    Sample,
    SegmentationDataset,
    by_name,
    cut_80_10_10,
)
from patlib.data.images import check_image_size

CLASSES = "classes.yaml"
KEYS = ("classes", "void", "image_size")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class Folder(SegmentationDataset):
    """Your own data: ``images/``, ``masks/``, and a ``classes.yaml`` that says what masks mean.

    A mask is a PNG file with one channel of 8 bits (or a palette) and the name of its image:
    ``images/a.jpg`` and ``masks/a.png``. The file ``classes.yaml``::

        classes: [road, car, sign]     # the masks hold 0, 1, 2
        void: [255]                    # optional: mask values of unlabelled pixels
        image_size: [256, 256]         # optional: (H, W), where image_size is not given

    or, where the masks hold other values, ``classes: {7: road, 26: car, 20: sign}``; the classes
    0 ... L-1 are numbered in the order of the file.

    Splits are folders: ``images/train``, ``images/test`` and, if there is one,
    ``images/validation``, and the same in ``masks``. Without such folders the images are cut
    80 / 10 / 10 % with seed 0, as by ``split_scheme="paper"``.

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
        "                 classes: {7: road, 26: car}\n"
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
            raise self._incomplete(f"there is no {CLASSES}")
        self.class_names, self.labels, self.default_size = read_classes(file)
        if image_size is None and self.default_size is None:
            raise ValueError(
                f"image_size must be given as (H, W), or written as image_size: [H, W] into {file},"
                " got neither"
            )
        super().__init__(root, split, image_size, split_scheme, void)

    def official_splits(self) -> dict[str, list[Sample]]:
        entries = [f for f in self._folder("images").iterdir() if not f.name.startswith(".")]
        self._folder("masks")
        parts = sorted(f.name for f in entries if f.is_dir())
        if not parts:
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
        def name(file: Path) -> str:
            return f"{part}{file.stem}"

        images = self._folder(f"images/{part}").iterdir()
        masks = self._folder(f"masks/{part}").iterdir()
        return self._pair(
            by_name((f for f in images if f.suffix.lower() in IMAGE_SUFFIXES), name),
            by_name((f for f in masks if f.suffix.lower() == ".png"), name),
            f"images/{part} and masks/{part}",
        )


def read_classes(
    file: Path,
) -> tuple[tuple[str, ...], dict[int, int], tuple[int, int] | None]:
    """Class names, mask value -> class (255 for void), and (H, W) or None, of a classes.yaml.

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
    for key, values in {"classes": classes, "void": void}.items():
        for value in values:
            if type(value) is not int or not 0 <= value <= 255:
                refuse(f"{key}: mask values must be integers from 0 to 255, got {value!r}")
    if both := sorted(set(classes) & set(void)):
        refuse(f"void must not contain {both[0]}, the mask value of class {classes[both[0]]!r}")
    labels = {value: index for index, value in enumerate(classes)}
    labels |= dict.fromkeys(void, IGNORE_INDEX)
    size = content.get("image_size")
    try:
        return tuple(names), labels, size if size is None else check_image_size(size)
    except ValueError as error:
        refuse(error)
