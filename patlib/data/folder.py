"""A user's own images and masks."""

from pathlib import Path

import yaml

from patlib.data.dataset import (
    IGNORE_INDEX,
    SPLITS,
    Sample,
    SegmentationDataset,
    check_image_size,
    cut_80_10_10,
)

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
    default_size = None
    layout = (
        "Expected in data_root:\n"
        "  images/a.jpg   or images/train/a.jpg ...  ("
        + ", ".join(s.removeprefix(".") for s in IMAGE_SUFFIXES)
        + ")\n"
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
                f"image_size is missing: the data set {self.name!r} has no size of its own; give "
                f"image_size=(H, W), or write image_size: [H, W] into {file}"
            )
        super().__init__(root, split, image_size, split_scheme, void)

    def official_splits(self) -> dict[str, list[Sample]]:
        for kind in ("images", "masks"):
            if not (self.root / kind).is_dir():
                raise self._incomplete(f"there is no folder {kind}/")
        parts = [f.name for f in _visible(self.root / "images") if f.is_dir()]
        if not parts:
            return cut_80_10_10(self._part(""))
        if unknown := sorted(set(parts) - set(SPLITS)):
            raise self._incomplete(
                f"images/ has a folder {unknown[0]!r}; a split is one of {', '.join(SPLITS)}"
            )
        if loose := [f.name for f in _visible(self.root / "images") if f.is_file()]:
            raise self._incomplete(f"images/{loose[0]} lies beside the folders of the splits")
        for wanted in ("train", "test"):
            if wanted not in parts:
                raise self._incomplete(f"there is images/{parts[0]}/, but no images/{wanted}/")
        return {part: self._part(f"{part}/") for part in parts}

    def _part(self, part: str) -> list[Sample]:
        if not (self.root / "masks" / part).is_dir():
            raise self._incomplete(f"there is no folder masks/{part}")
        images = self._by_name(self.root / "images" / part, IMAGE_SUFFIXES)
        masks = self._by_name(self.root / "masks" / part, (".png",))
        if unmatched := images.keys() ^ masks.keys():
            raise self._incomplete(
                f"{len(unmatched)} of images/{part} and masks/{part} have no counterpart, the "
                f"first is {min(unmatched)}"
            )
        return [Sample(f"{part}{name}", images[name], masks[name]) for name in sorted(images)]

    def _by_name(self, folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
        files = {}
        for file in _visible(folder):
            if file.suffix.lower() in suffixes:
                if other := files.get(file.stem):
                    raise ValueError(f"{other} and {file.name} have the same name")
                files[file.stem] = file
        return files


def read_classes(
    file: Path,
) -> tuple[tuple[str, ...], dict[int, int], tuple[int, int] | None]:
    """Class names, mask value -> class (255 for void), and (H, W) or None, of a classes.yaml.

    Raises:
        ValueError: the file is wrong; the message names it and the key.
    """

    def wrong(what: str) -> ValueError:
        return ValueError(f"{file}: {what}.\n{Folder.layout}")

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise wrong(f"it is not YAML ({error})") from error
    if not isinstance(content, dict) or "classes" not in content:
        raise wrong("the key 'classes' is missing")
    if unknown := [key for key in content if key not in KEYS]:
        raise wrong(f"unknown key {unknown[0]!r}; allowed are {', '.join(KEYS)}")

    classes = content["classes"]
    if isinstance(classes, list):
        classes = dict(enumerate(classes))
    names = list(classes.values()) if isinstance(classes, dict) else []
    if bad := [name for name in names if not isinstance(name, str)]:
        # YAML reads a bare on, off, yes or no as true or false.
        raise wrong(
            f"classes: {bad[0]!r} is not a name; it takes names, or mask value: name (a number, or "
            "a word such as on, needs quotes to be a name)"
        )
    if "void" in names:
        raise wrong("classes: 'void' is not a class; write its mask values into void")
    # One is left for void as a class, and 255 marks ignored pixels.
    if not 2 <= len(set(names)) == len(names) <= IGNORE_INDEX - 1:
        raise wrong(
            f"classes: {len(names)} names, {len(set(names))} of them different; it takes 2 to "
            f"{IGNORE_INDEX - 1}, all different"
        )
    void = content.get("void", [])
    if not isinstance(void, list):
        raise wrong(f"void={void!r} is not allowed: it takes a list of mask values, such as [255]")
    for key, values in {"classes": classes, "void": void}.items():
        for value in values:
            if type(value) is not int or not 0 <= value <= 255:
                raise wrong(f"{key}: {value!r} is not a mask value; these are 0 to 255")
    if both := sorted(set(classes) & set(void)):
        raise wrong(f"void: the mask value {both[0]} is the class {classes[both[0]]!r} already")
    labels = {value: index for index, value in enumerate(classes)}
    labels |= dict.fromkeys(void, IGNORE_INDEX)

    size = content.get("image_size")
    try:
        return tuple(names), labels, size if size is None else check_image_size(size)
    except ValueError as error:
        raise wrong(str(error)) from error


def _visible(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if not f.name.startswith("."))
