"""What a folder of images and masks holds: what does not fit, how long its tail is."""

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patlib.data import Folder, build_dataset, class_sizes, load_arrays
from patlib.data.dataset import SPLITS
from patlib.data.folder import (
    CLASSES,
    IMAGE_SUFFIXES,
    color_text,
    draft_classes,
    list_files,
    mask_values,
    path_in,
    read_classes,
)
from patlib.data.images import open_image
from patlib.files import write_text
from patlib.metrics import class_groups

THUMBNAIL = 16  # pixels of a side, in which images are compared
NEAR = 0.995  # correlation of the thumbnails of near-duplicates
LONGEST_SIDE = 256  # pixels, of the size that is proposed
MULTIPLE = 32  # of which its sides are
SHOWN = 20  # problems in an error
#: what the study has found on this, held by a test against its records
FINDING = (
    "On drawn scenes PAT, 1/√S and CB raised the IoU of the rarest classes above that of "
    "cross-entropy, whether these were small or in few images; BMS not always. Take the kind of "
    "tail as a hint, and the comparison as the answer."
)


@dataclass
class Survey:
    """What was found in a folder.

    Attributes:
        root: the folder.
        problems: file, as a path in the folder -> what is wrong with it.
        drafted: the text of the ``classes.yaml`` that was written; None if there was one.
        class_names: names of the classes 0 ... L-1.
        image_size: (H, W) that the networks see.
        splits: split -> valid pixels of each class in each image, (N, L).
        original_sizes: how many images have which (H, W).
        duplicates: pairs of a test or validation image and a training image that look alike.
    """

    root: Path
    problems: dict[str, str] = field(default_factory=dict)
    drafted: str | None = None
    class_names: tuple[str, ...] = ()
    image_size: tuple[int, int] = (0, 0)
    splits: dict[str, np.ndarray] = field(default_factory=dict)
    original_sizes: Counter = field(default_factory=Counter)
    duplicates: list[tuple[str, str]] = field(default_factory=list)


def survey(
    root: str | Path,
    image_size: tuple[int, int] | None = None,
    progress: Callable[..., Iterable[Any]] = lambda items, **_: items,
) -> Survey:
    """Read every file of a folder, and say what is wrong before anything is trained.

    Where ``classes.yaml`` is missing, a draft is written into the folder.

    Args:
        root: the folder, as :class:`patlib.data.Folder` reads it.
        image_size: (H, W) of training; None takes that of ``classes.yaml``, or one with the
            proportions of most images and a longer side of 256 pixels.
        progress: wraps the iteration over the images.

    Raises:
        FileNotFoundError: there is no folder, or none with images and masks.
        ValueError: files do not fit; the message has them, one a line, each with what is wrong.
    """
    root = Path(root).expanduser().absolute()
    for kind in ("images", "masks"):
        if not (root / kind).is_dir():
            raise FileNotFoundError(
                f"the folder {str(root)!r} has no folder {kind}/.\n{Folder.layout}"
            )
    found = Survey(root)
    named = {
        kind: _by_path(root, kind, suffixes, found.problems)
        for kind, suffixes in {"images": IMAGE_SUFFIXES, "masks": (".png",)}.items()
    }
    for kind, other in (("images", "masks"), ("masks", "images")):
        for name in sorted(named[kind].keys() - named[other].keys()):
            missing = "mask (PNG)" if other == "masks" else "image"
            found.problems[_shown(root, named[kind][name])] = f"there is no {missing} of this name"
    pairs = sorted(named["images"].keys() & named["masks"].keys())
    if not pairs and not found.problems:
        raise FileNotFoundError(f"the folder {str(root)!r} has no images.\n{Folder.layout}")
    looked = _look(named, pairs, progress)
    for name, look in zip(pairs, looked, strict=True):
        for kind, what in look.problems.items():
            found.problems[_shown(root, named[kind][name])] = what
    fit = [(name, look) for name, look in zip(pairs, looked, strict=True) if not look.problems]
    found.original_sizes.update(look.size for _, look in fit)
    values = _check_values(found, {named["masks"][name]: look for name, look in fit})
    if found.problems:
        raise ValueError(_listing(found))

    found.image_size = image_size or _image_size(root, found.original_sizes)
    if not (root / CLASSES).is_file():
        found.drafted = draft_classes(values, found.image_size)
        try:
            write_text(root / CLASSES, found.drafted)
        except OSError as error:
            raise ValueError(
                f"{root} must hold a {CLASSES}, and it cannot be written there ({error}). A "
                f"draft:\n{found.drafted}"
            ) from error
    names = {}
    for split in SPLITS:
        dataset = build_dataset("folder", root, split, found.image_size)
        names[split] = [sample.id for sample in dataset.samples]
        found.class_names = dataset.class_names
        found.splits[split] = class_sizes(load_arrays(dataset), dataset.num_classes).numpy()
    thumbnails = {_key(n): look.thumbnail for n, look in zip(pairs, looked, strict=True)}
    found.duplicates = near_duplicates(names, thumbnails)
    return found


@dataclass
class _Look:
    problems: dict[str, str]
    values: Counter
    colored: bool = False
    size: tuple[int, int] = (0, 0)
    thumbnail: np.ndarray | None = None


def _look(named: Mapping, pairs: list[str], progress: Callable) -> list[_Look]:
    """What each image and its mask hold, or what is wrong with them."""

    def look(name: str) -> _Look:
        problems, values, colored, mask_size, image = {}, Counter(), False, None, None
        try:
            image = open_image(named["images"][name])
        except ValueError as error:
            problems["images"] = _without_path(error, named["images"][name])
        try:
            colored, values = mask_values(named["masks"][name])
            with Image.open(named["masks"][name]) as mask:
                turned = mask.getexif().get(0x0112, 1) >= 5
                mask_size = mask.size if turned else mask.size[::-1]
        except ValueError as error:
            problems["masks"] = _without_path(error, named["masks"][name])
        if problems:
            return _Look(problems, values)
        size = (image.height, image.width)
        if size != mask_size:
            problems["masks"] = (
                f"the mask has {mask_size[0]}x{mask_size[1]} pixels (H x W), the image "
                f"{size[0]}x{size[1]}"
            )
        small = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        return _Look(problems, values, colored, size, np.asarray(small, np.float32).ravel())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(progress(pool.map(look, pairs), total=len(pairs), desc="looking at images"))


def _by_path(root: Path, kind: str, suffixes: Iterable[str], problems: dict) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for file in sorted(list_files(root / kind, suffixes)):
        key = _key(path_in(root / kind, file))
        if key in named:
            problems[_shown(root, file)] = f"{named[key].name} has the same name"
        named.setdefault(key, file)
    return named


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _shown(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


def _without_path(error: ValueError, file: Path) -> str:
    return str(error).removeprefix(f"{file}: ")


def _check_values(found: Survey, masks: Mapping[Path, _Look]) -> Counter:
    """The values of all masks; noted are those that ``classes.yaml`` lacks.

    Without that file, masks are of the kind of most: numbers, or colours. A palette is read as its
    colours among colours.
    """
    file, known = found.root / CLASSES, None
    if file.is_file():
        _, labels, _, colored = read_classes(file)
        known = {color_text(v) if colored else v for v in labels}
    else:
        colored = 2 * sum(look.colored for look in masks.values()) > len(masks)
    total = Counter()
    for mask, look in masks.items():
        values = look.values
        if colored and not look.colored:
            values = mask_values_as_colors(mask)
        if known is None and look.colored and not colored:
            what = "it holds colours, most masks hold numbers"
            found.problems[_shown(found.root, mask)] = what
        elif known is not None and (unknown := sorted(values.keys() - known, key=str)[:8]):
            what = f"it holds {unknown}, which {CLASSES} does not have"
            found.problems[_shown(found.root, mask)] = what
        total += values
    return total


def mask_values_as_colors(file: Path) -> Counter:
    """The colours of a mask with a palette, as text, with their pixels."""
    colors, pixels = np.unique(
        np.asarray(open_image(file)).reshape(-1, 3), axis=0, return_counts=True
    )
    texts = ["#{:02x}{:02x}{:02x}".format(*color) for color in colors.tolist()]
    return Counter(dict(zip(texts, pixels.tolist(), strict=True)))


def _listing(found: Survey) -> str:
    lines = [f"  {file}: {what}" for file, what in sorted(found.problems.items())]
    more = len(lines) - SHOWN
    if more > 0:
        lines = [*lines[:SHOWN], f"  ... and {more} more"]
    number = len(found.problems)
    files = "1 file does" if number == 1 else f"{number} files do"
    return (
        f"{files} not fit in {str(found.root)!r}; mend or move them, and start again:\n"
        + "\n".join(lines)
    )


def _image_size(root: Path, sizes: Counter) -> tuple[int, int]:
    """The size in ``classes.yaml``, or one like most images, of multiples of 32."""
    if (root / CLASSES).is_file() and (size := read_classes(root / CLASSES)[2]):
        return size
    (height, width), _ = sizes.most_common(1)[0]
    scale = min(1, LONGEST_SIDE / max(height, width))
    sides = (max(MULTIPLE, MULTIPLE * round(scale * n / MULTIPLE)) for n in (height, width))
    return tuple(sides)


def near_duplicates(
    names: Mapping[str, list[str]], thumbnails: Mapping[str, np.ndarray]
) -> list[tuple[str, str]]:
    """Validation and test images that look like a training image: ``(name, training image)``.

    Two images look alike if their grey thumbnails of 16 x 16 pixels correlate by 0.995 or more:
    the same image stored anew, or the next frame of a resting camera.

    Args:
        names: of the images of each split.
        thumbnails: grey values by name.
    """

    def standardised(split: str) -> np.ndarray:
        rows = np.stack([thumbnails[_key(name)] for name in names[split]])
        rows = rows - rows.mean(1, keepdims=True)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)

    training, found = standardised("train"), []
    for split in ("validation", "test"):
        correlation = standardised(split) @ training.T
        for name, row in zip(names[split], correlation, strict=True):
            if row.max() >= NEAR:
                found.append((name, names["train"][row.argmax()]))
    return found


def class_table(found: Survey, split: str = "train") -> dict[str, Any]:
    """A split as :func:`patlib.plots.plot_class_shares` takes it."""
    sizes = found.splits[split]
    classes = []
    for name, column in zip(found.class_names, sizes.T, strict=True):
        there = column[column > 0]
        quantiles = (
            np.quantile(there, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist() if len(there) else None
        )
        classes.append(
            {
                "name": name,
                "pixels": int(column.sum()),
                "images": len(there),
                "size_quantiles": quantiles,
            }
        )
    return {"images": len(sizes), "classes": classes}


def notes(found: Survey) -> list[str]:
    """What the folder means for the comparison, in sentences: gaps, doubles, kind of the tail."""
    said = []
    if unnamed := [n for n in found.class_names if n.startswith("class_")]:
        said.append(
            f"{_quoted(unnamed)}: names of a draft. Put your own into {found.root / CLASSES} at "
            "any time, and start again: nothing is trained anew."
        )
    present = {split: (sizes > 0).sum(0) for split, sizes in found.splits.items()}
    for split, verb in {
        "train": "cannot be learned",
        "validation": "has no part in the choice of a loss",
        "test": "has no test score",
    }.items():
        missing = [n for n, m in zip(found.class_names, present[split], strict=True) if not m]
        if missing:
            said.append(f"No {split} image holds {_quoted(missing)}: what is not there {verb}.")
    total = sum(present.values())
    if single := [n for n, m in zip(found.class_names, total, strict=True) if m == 1]:
        said.append(f"In a single image: {_quoted(single)}. Its score, if any, is that image's.")
    if found.duplicates:
        name, like = found.duplicates[0]
        said.append(
            f"{len(found.duplicates)} validation or test image(s) look like a training image, such "
            f"as {name!r} like {like!r}: scores are then too good. Folders images/train, "
            "images/validation and images/test make a cut of your own."
        )
    if len(found.original_sizes) > 1:
        said.append(
            f"The images have {len(found.original_sizes)} sizes; the networks see all at "
            f"{found.image_size[0]}x{found.image_size[1]} (H x W)."
        )
    said.append(kind_of_tail(found))
    return said


def kind_of_tail(found: Survey) -> str:
    """Whether rare classes are in few images or small where they are, and which losses see that.

    What a loss divides by follows from its formula; what came of it is a finding of the study.
    """
    sizes = found.splits["train"]
    pixels, images = sizes.sum(0), (sizes > 0).sum(0)
    there = np.flatnonzero(pixels)
    if len(there) < 2:
        return "The training images hold one class only."
    groups = class_groups(pixels)
    common = max(there, key=lambda c: pixels[c])
    rare = min(there, key=lambda c: pixels[c])
    factor = pixels[common] / pixels[rare]
    between = images[common] / images[rare]
    inside = factor / between
    names = found.class_names
    many = (
        "as many images" if f"{between:.2g}" == "1" else f"{_times(between)} times as many images"
    )
    text = (
        f"{names[common]!r} has {_times(factor)} times the pixels of {names[rare]!r}: it is in "
        f"{many} and {_times(inside)} times larger in an image. "
    )
    if factor < 10:
        return text + "A short tail: cross-entropy may well do."
    if inside > 3 * between:
        text += (
            "The tail is made of classes that are small where they are. PAT divides by the size in "
            "the image, 1/√S by its root; losses by class frequency (BMS, weighted cross-entropy) "
            "see it too."
        )
    elif between > 3 * inside:
        text += (
            "The tail is made of classes in few images. PAT and 1/√S, which divide by the size in "
            "the image, leave that as it is; losses by class frequency (BMS, weighted "
            "cross-entropy) and samplers do not."
        )
    else:
        text += (
            "The tail is made of both: classes in few images, and small where they are. PAT and "
            "1/√S divide by the size in the image and leave the number of images as it is; losses "
            "by class frequency (BMS, weighted cross-entropy) see the product."
        )
    text += f" {FINDING}"
    tail = [names[c] for c in groups["tail"]]
    return f"{text} The tail of the scores is {_quoted(tail)}." if tail else text


def _times(factor: float) -> str:
    """Two digits, such as 1.3, 17 or 1,900."""
    digits = 1 if factor < 10 else -max(0, math.floor(math.log10(factor)) - 1)
    return f"{round(factor, digits):,.{max(digits, 0)}f}"


def _quoted(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(map(repr, names[:8]))
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
