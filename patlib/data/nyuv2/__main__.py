"""The official file of NYU Depth v2 as a folder of images: ``python -m patlib.data.nyuv2 -h``."""

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from patlib.data.cache import whole_folder
from patlib.data.dataset import Sample
from patlib.data.images import check_image_size, resize
from patlib.data.nyuv2 import MAT, NYUv2


def prepare(
    mat: str | Path,
    out: str | Path,
    image_size: tuple[int, int] | None = None,
    progress: Callable[..., Iterable[Any]] = lambda items, **_: items,
) -> None:
    """Write the frames and their 13 classes as PNG files, in the layout that NYUv2 reads.

    ``out`` appears when it is whole. (A killed process leaves a hidden folder beside it, which the
    next one removes.)

    Args:
        mat: the official file ``nyu_depth_v2_labeled.mat``.
        out: the folder to make.
        image_size: (H, W) in pixels, resized as NYUv2 does; None keeps 480x640.
        progress: wraps the iteration over frames, for a progress bar.

    Raises:
        FileNotFoundError: there is no file ``mat``.
        FileExistsError: there is something called ``out`` already.
        ValueError: ``mat`` is not the official file, or ``image_size`` is not allowed.
    """
    mat, out = Path(mat).expanduser(), Path(out).expanduser()
    if not mat.is_file():
        raise FileNotFoundError(f"mat must be a file, got {str(mat)!r}\n{NYUv2.layout}")
    if out.exists():
        raise FileExistsError(f"out must be a new folder, got {str(out)!r}, which exists")
    if image_size is not None:
        image_size = check_image_size(image_size)
    dataset = NYUv2(mat, split_scheme="paper")
    splits = dataset.official_splits()
    split_of = {sample: split for split, part in splits.items() for sample in part}
    samples = sorted(split_of)

    def write(sample: Sample) -> None:
        image, mask = dataset.read(sample)
        if image_size is not None:
            image, mask = resize(image, mask, image_size)
        image.save(beside / "images" / f"{sample.id}.png")
        Image.fromarray(mask).save(beside / "labels13" / f"{sample.id}.png")

    with whole_folder(out) as beside, ThreadPoolExecutor(os.cpu_count()) as pool:
        if beside is None:  # made by another process meanwhile
            raise FileExistsError(f"out must be a new folder, got {str(out)!r}, which exists")
        for folder in ("images", "labels13"):
            (beside / folder).mkdir()
        rows = [f"{int(sample.id)},{split_of[sample]}\n" for sample in samples]
        (beside / "splits.csv").write_text("index,split\n" + "".join(rows))
        for _ in progress(pool.map(write, samples), total=len(samples), desc=str(out)):
            pass


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m patlib.data.nyuv2",
        description=f"Turn {MAT} into a folder of image files that patlib reads: the frames as PNG "
        "in images/, their 13 classes (0 is void) in labels13/, and the official split in "
        "splits.csv. The folder appears when it is whole. Without --size it takes about 1 GB.",
    )
    parser.add_argument("mat", type=Path, help=f"the official file, {MAT}")
    parser.add_argument("out", type=Path, help="the folder to make; it must not be there yet")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="height and width of the files in pixels, such as 256 340 in the paper "
        "(default: 480 640, as in the official file)",
    )
    chosen = parser.parse_args(arguments)
    try:
        prepare(chosen.mat, chosen.out, chosen.size, tqdm)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
