"""What becomes of masks resized bilinearly: python study/resized_labels.py --data FOLDER

Class numbers have no order that means anything, so that a number between two of them is another
class. Reads the masks of the official test part of each data set of ``grids/small/table1.yaml`` and
writes ``study/records/resized_labels.json``: numbers only, no image and no mask.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from patlib.data import IGNORE_INDEX, build_dataset
from patlib.data.images import resize
from patlib.files import write_text
from patlib.metrics import compute_scores
from patlib.records import provenance
from patlib.study.grids import data_root, load_grid

STUDY = Path(__file__).parent
BILINEAR = Image.Resampling.BILINEAR
RECORD = STUDY / "records" / "resized_labels.json"


def resized(mask: np.ndarray, image_size: Sequence[int]) -> dict[str, np.ndarray]:
    """A mask (H, W) of uint8 numbers at another size, by four ways.

    Returns:
        ``nearest``: the number under the centre of the new pixel. ``bilinear``: the mean of the
        numbers under Pillow's bilinear filter, in whole numbers. ``majority``: the number with the
        largest weight under that filter. ``invented``: whether the bilinear number is one that no
        pixel under the filter has.
    """
    # Of the mask as a picture, as Pillow does it, and of the mask.
    picture, nearest = resize(Image.fromarray(mask), mask, image_size)
    bilinear = np.asarray(picture)

    def filtered(values: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(values.astype(np.float32)).resize(picture.size, BILINEAR))

    values = np.unique(mask)
    weights = np.stack([filtered(mask == value) for value in values])
    under = (weights > 1e-6) & (values[:, None, None] == bilinear)
    return {
        "nearest": nearest,
        "bilinear": bilinear,
        "majority": values[weights.argmax(0)],
        "invented": ~under.any(0),
    }


def describe(
    masks: Iterable[np.ndarray], image_size: Sequence[int], labels: dict[int, int], num_classes: int
) -> dict:
    """How the labels of masks differ from those of nearest neighbour, over all pixels.

    Returns:
        ``pixels``; for ``bilinear`` and ``majority`` the share of pixels with another label
        (``changed``) and the ``miou`` against nearest neighbour; and the share that is
        ``invented``.
    """
    lookup = np.full(256, IGNORE_INDEX)
    lookup[list(labels)] = list(labels.values())
    pixels = invented = 0
    changed = {"bilinear": 0, "majority": 0}
    counts = {way: np.zeros((3, num_classes), np.int64) for way in changed}
    for mask in masks:
        found = resized(mask, image_size)
        true = lookup[found["nearest"]]
        valid = true != IGNORE_INDEX
        pixels += true.size
        invented += int(found["invented"].sum())
        for way in changed:
            changed[way] += int((found[way] != found["nearest"]).sum())
            label = lookup[found[way]]
            of_class = (true[valid & (label == true)], true[valid], label[valid])
            counts[way] += [np.bincount(part, minlength=256)[:num_classes] for part in of_class]
    return {
        "pixels": pixels,
        "invented": invented / pixels,
        **{
            way: {"changed": changed[way] / pixels, "miou": compute_scores(counts[way])["miou"]}
            for way in changed
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds camvid/, ...")
    parser.add_argument("--out", type=Path, default=RECORD, help="the file (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    sizes = {}
    for planned in load_grid(STUDY / "grids" / "small" / "table1.yaml"):
        sizes[planned.settings["dataset"]] = planned.settings["image_size"]
    record = {}
    for name, small in sizes.items():
        dataset = build_dataset(name, data_root(name, chosen.data), "test")
        for size in (small, list(dataset.default_size)):
            if dataset.read(dataset.samples[0])[1].shape == tuple(size):
                continue  # masks of this size already: what they were before cannot be told
            masks = (dataset.read(sample)[1].astype(np.uint8) for sample in dataset.samples)
            entry = describe(masks, size, dataset.labels, dataset.num_classes)
            record.setdefault(name, []).append(
                {"image_size": size, "images": len(dataset), **entry}
            )
            print(name, record[name][-1], flush=True)
    made = {
        **provenance(torch.device("cpu")),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    content = {"datasets": record, "provenance": made}
    write_text(chosen.out, json.dumps(content, indent=1, default=float) + "\n")
    print(chosen.out)


if __name__ == "__main__":
    main()
