"""Label maps as files: PNG with a palette, pictures of them over the image, many at once."""

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor
from torch import nn

from patlib.data.folder import IMAGE_SUFFIXES
from patlib.data.images import open_image
from patlib.files import write_text, write_whole
from patlib.own import fingerprint_model
from patlib.plots.colors import class_colors
from patlib.prediction import Predictor, chosen_shift

LEGEND = "classes.json"  # beside the label maps: what their values mean, and whose they are
THREADS = 4  # that read and write while the network computes
SHOWN = 20  # files in an error
OPACITY = 0.5  # of the label map over the image


@dataclass(frozen=True)
class Legend:
    """What the pixels of label maps mean: their values and colours, class by class.

    Label maps are like the masks that the network was trained on. Where these held one number for
    each class, so does the label map; where they held colours, the label map holds class numbers
    and its palette those colours, so that it is equal to such a mask when it is read as RGB.

    Attributes:
        class_names: names of the classes 0 ... L-1.
        mask_values: of each class the value, or colour (``"#804080"``), in the masks, see
            :class:`patlib.data.SegmentationDataset`; None for class numbers.
    """

    class_names: tuple[str, ...]
    mask_values: tuple[int, ...] | tuple[str, ...] | None = None

    @property
    def colored(self) -> bool:
        """Whether the masks held colours."""
        return self.mask_values is not None and isinstance(self.mask_values[0], str)

    @property
    def values(self) -> tuple[int, ...]:
        """The value of each class in a label map."""
        if self.mask_values is None or self.colored:
            return tuple(range(len(self.class_names)))
        return self.mask_values

    @property
    def palette(self) -> list[str]:
        """The colours of the classes, those of the masks or those of every figure."""
        return list(self.mask_values) if self.colored else class_colors(self.class_names)

    @property
    def rgb(self) -> np.ndarray:
        """The palette as uint8 (L, 3)."""
        return np.array([ImageColor.getrgb(color) for color in self.palette], np.uint8)

    def describe(self) -> dict[str, Any]:
        """As it stands in ``classes.json``: class by class a name, a value and a colour."""
        rows = zip(self.class_names, self.values, self.palette, strict=True)
        return {"classes": [{"name": n, "value": v, "color": c} for n, v, c in rows]}


def write_label_map(path: str | Path, labels: np.ndarray, legend: Legend) -> None:
    """Write labels as a PNG with one channel, in which viewers show the classes' colours.

    Args:
        path: of the file.
        labels: class numbers, (H, W).
        legend: the values and colours of the file.
    """
    values, colors = np.array(legend.values, np.uint8), np.full((256, 3), 255, np.uint8)
    colors[values] = legend.rgb
    numbered = np.array_equal(values, np.arange(len(values)))  # no copy of every pixel then
    image = Image.fromarray(np.asarray(labels, np.uint8) if numbered else values[labels])
    image.putpalette(colors.tobytes())
    with write_whole(path) as file:
        image.save(file, "png", compress_level=1)


def write_overlay(
    path: str | Path, image: str | Path | Image.Image, labels: np.ndarray, legend: Legend
) -> None:
    """Write the image with the colours of the classes over it, half transparent, as a JPEG."""
    colors = Image.fromarray(legend.rgb[labels])
    with write_whole(path) as file:
        Image.blend(open_image(image), colors, OPACITY).save(file, "jpeg", quality=90)


def find_images(images: Iterable[str | Path]) -> dict[Path, Path]:
    """Files by the path, without suffix, that their results have in a folder.

    Args:
        images: files, whose results have their names; and folders, in which images are looked for
            at any depth, whose results have their paths in the folder.

    Raises:
        FileNotFoundError: there is no such file or folder, or a folder without images.
        ValueError: two results would have the same path.
    """
    found: dict[Path, Path] = {}
    for given in map(Path, images):
        given = given.expanduser()
        if given.is_dir():
            files = sorted(f for f in given.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                raise FileNotFoundError(f"images: there is no image in the folder {str(given)!r}")
        elif given.is_file():
            files = [given]
        else:
            raise FileNotFoundError(f"images: there is no file {str(given)!r}")
        for file in files:
            name = (file.relative_to(given) if given.is_dir() else Path(file.name)).with_suffix("")
            if name in found and found[name] != file:
                raise ValueError(
                    f"images must have different names, got {str(found[name])!r} and {str(file)!r}"
                )
            found[name] = file
    return found


def label_files(
    run: str | Path,
    images: Iterable[str | Path],
    out: str | Path,
    overlay: bool = False,
    prior_shift: Mapping[str, float] | str | None = None,
    batch_size: int = 8,
    device: str = "auto",
    model: nn.Module | None = None,
    progress: Callable[..., Iterable[Any]] = lambda items, **_: items,
) -> list[Path]:
    """Label images into a folder: ``label_files("runs/mine", ["photos"], "labels")``.

    Each image gets a PNG with a palette, of its own size, and with ``overlay`` a JPEG of colours
    over the image beside it. The PNG has the values of the masks that the network was trained on,
    see :class:`patlib.label_maps.Legend`. What is there already is kept, so that an interrupted
    call goes on. ``classes.json`` says what the values mean, and which network made them.

    Args:
        run: the ``output_dir`` of :func:`patlib.train`, or its ``last.ckpt``.
        images: files and folders, see :func:`patlib.label_maps.find_images`.
        out: the folder of the results, made if it is missing.
        overlay: also write ``NAME_overlay.jpg``.
        prior_shift, batch_size, device, model: see :class:`patlib.Predictor`.
        progress: wraps the iteration over the images that have no result yet.

    Returns:
        The label maps, in the order of the images.

    Raises:
        ValueError: also if ``out`` holds label maps of another network or shift, or other files
            under the names of the results, or lies in a folder of the images; or if a file is no
            image, before anything is labelled. (One that turns out to be damaged when it is decoded
            ends the call; what was labelled before it is kept.)
        FileNotFoundError: see :func:`patlib.label_maps.find_images` and :func:`patlib.load_model`.
        OSError: a file cannot be written.
    """
    if prior_shift == "chosen":
        prior_shift = chosen_shift(run)
    images = list(images)
    files = find_images(images)
    _check_files(files.values())
    _check_out(Path(out).expanduser(), images, files)
    predictor = Predictor(run, device, batch_size, prior_shift, model)
    out = Path(out).expanduser()
    legend = Legend(predictor.class_names, predictor.mask_values)
    described = _described(legend, predictor, prior_shift)
    _check_legend(out / LEGEND, described)
    paths = {name: out / f"{name}.png" for name in files}

    def overlay_path(name: Path) -> Path:
        return out / f"{name}_overlay.jpg"

    todo = [
        name
        for name, path in paths.items()
        if not path.is_file() or (overlay and not overlay_path(name).is_file())
    ]

    def write(name: Path, labels: np.ndarray) -> None:
        if overlay:
            write_overlay(overlay_path(name), files[name], labels, legend)
        write_label_map(paths[name], labels, legend)

    with ThreadPoolExecutor(THREADS) as pool:
        opened = _ahead(pool, open_image, (files[name] for name in todo), 2 * batch_size)
        writing: deque[Future] = deque()
        labelled = zip(todo, predictor.label(opened), strict=True)
        try:
            for name, labels in progress(labelled, total=len(todo), desc="labelling"):
                if not (out / LEGEND).is_file():  # now that there is something to tell of
                    write_text(out / LEGEND, described)
                writing.append(pool.submit(write, name, labels))
                while len(writing) > 2 * batch_size:
                    writing.popleft().result()
        finally:  # what was labelled is kept, also where a later image cannot be read
            for future in writing:
                future.result()
    return list(paths.values())


def _ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, number: int) -> Iterator:
    """The results of a function in their order, so many of them computed ahead."""
    items = iter(items)
    futures = deque(pool.submit(function, item) for item in itertools.islice(items, number))
    while futures:
        result = futures.popleft().result()
        futures.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
        yield result


def _check_files(files: Iterable[Path]) -> None:
    """Refuse files that are no images: their headers are read, not their pixels."""
    wrong = []
    for file in files:
        try:
            with Image.open(file):
                pass
        except (OSError, ValueError):
            wrong.append(f"  {file}: it is no image, or a damaged one")
    if wrong:
        number = "1 file is" if len(wrong) == 1 else f"{len(wrong)} files are"
        more = [f"  ... and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        listed = "\n".join([*wrong[:SHOWN], *more])
        raise ValueError(f"images must be images, {number} not; nothing was labelled:\n{listed}")


def _check_out(out: Path, images: Iterable[str | Path], names: Iterable[Path]) -> None:
    """Refuse a folder in which results and images, or other files, could be mistaken."""
    for given in map(Path, images):
        folder = given.expanduser().resolve()
        if folder.is_dir() and out.resolve().is_relative_to(folder):
            raise ValueError(f"out must not lie in the folder of the images, got {str(out)!r}")
    taken = [path for name in names if (path := out / f"{name}.png").exists()]
    if taken and not (out / LEGEND).is_file():
        raise ValueError(
            f"out must be a folder of label maps or a new one, got {str(out)!r}, where "
            f"{taken[0].name} is something else: there is no {LEGEND}"
        )


def _described(
    legend: Legend, predictor: Predictor, prior_shift: Mapping[str, float] | None
) -> str:
    """The text of ``classes.json``: what label maps mean, and whose they are."""
    shift = None if prior_shift is None else {k: float(v) for k, v in prior_shift.items()}
    origin = {"prior_shift": shift, "network_sha256": fingerprint_model(predictor.model)}
    return json.dumps({**legend.describe(), **origin}, indent=1) + "\n"


def _check_legend(path: Path, described: str) -> None:
    """Refuse a folder that holds label maps of another network."""
    if path.is_file() and path.read_text() != described:
        raise ValueError(
            f"out={str(path.parent)!r} holds label maps of another network or prior shift: "
            "choose another folder or remove that one"
        )
