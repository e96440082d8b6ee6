"""Count the classes of the real data sets: python study/datasets.py --root camvid=PATH ...

Reads every mask of the three official splits at the data set's default size (the paper's, where
the paper uses it) and writes ``study/records/datasets.json``: numbers only, no image and no mask.
A data set that is not named keeps the entry that it has.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from patlib.data import DATASETS, IGNORE_INDEX, SegmentationDataset, build_dataset, load_arrays
from patlib.data.dataset import SPLITS
from patlib.files import write_text
from patlib.records import provenance

RECORD = Path(__file__).parent / "records" / "datasets.json"
#: data sets with classes and splits of their own, read from a folder
COUNTED = tuple(name for name, d in DATASETS.items() if not d.drawn and d.default_size)
QUANTILES = (5, 25, 50, 75, 95)
PET_BREEDS = 37


def count(dataset: SegmentationDataset) -> tuple[dict, str]:
    """How often and how large the classes of one split are, and the fingerprint of its arrays.

    Returns:
        ``images``; ``classes``, one entry for each class 0 ... L-1; ``ignored``, the same for
        ignored pixels. An entry has ``name``, ``pixels`` (in all images together), ``images`` (that
        contain it), and ``size_quantiles``: the pixels that it covers in one image, over the images
        that contain it (None if there are none), at ``QUANTILES`` percent.
    """
    arrays = load_arrays(dataset)
    sizes = np.array([np.bincount(mask.ravel(), minlength=256) for mask in arrays.masks])

    def entry(name: str, sizes: np.ndarray) -> dict:
        present = sizes[sizes > 0]
        quantiles = np.percentile(present, QUANTILES).round(1).tolist() if present.size else None
        return {
            "name": name,
            "pixels": int(sizes.sum()),
            "images": present.size,
            "size_quantiles": quantiles,
        }

    counted = {
        "images": len(dataset),
        "classes": [entry(name, sizes[:, c]) for c, name in enumerate(dataset.class_names)],
        "ignored": entry("ignored", sizes[:, IGNORE_INDEX]),
    }
    return counted, arrays.fingerprint


def describe(splits: dict[str, SegmentationDataset]) -> dict:
    """The entry of one data set in the record."""
    first = splits["train"]
    counted, fingerprints = {}, {}
    for split, dataset in splits.items():
        counted[split], fingerprints[split] = count(dataset)
    return {
        "class_names": list(first.class_names),
        "image_size": list(first.image_size),
        "split_scheme": first.split_scheme,
        "note": note(splits),
        "splits": counted,
        "provenance": {
            **provenance(torch.device("cpu")),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": fingerprints,
        },
    }


def note(splits: dict[str, SegmentationDataset]) -> str:
    """What a reader has to know of the files: their size, and if they are only a part."""
    samples = [(dataset, sample) for dataset in splits.values() for sample in dataset.samples]
    shapes = {dataset.read(sample)[1].shape for dataset, sample in samples}
    if len(shapes) == 1:
        text = "The mask files are {}x{} pixels (H x W)".format(*shapes.pop())
    else:
        shorter = [min(shape) for shape in shapes]
        text = f"The shorter sides of the mask files are {min(shorter)} to {max(shorter)} pixels"
    if splits["train"].name == "oxford_pet":
        breeds = sorted({sample.id.rsplit("_", 1)[0] for _, sample in samples})
        if len(breeds) < PET_BREEDS:
            text += f"; {len(breeds)} of {PET_BREEDS} breeds ({', '.join(breeds)})"
    return text + "."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python study/datasets.py",
        description="Count the classes of the real data sets into study/records/datasets.json.",
    )
    parser.add_argument(
        "--root",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help=f"a data set and its folder, once for each; NAME is {', '.join(COUNTED)}",
    )
    parser.add_argument("--out", type=Path, default=RECORD, help="the file (default: %(default)s)")
    chosen = parser.parse_args(arguments)

    # All of them are looked at before any is counted.
    found, wrong = {}, []
    for argument in chosen.root:
        name, _, root = argument.partition("=")
        if name not in COUNTED or not root:
            parser.error(
                f"--root must be NAME=PATH, NAME one of {', '.join(COUNTED)}, got {argument!r}"
            )
        try:
            found[name] = {split: build_dataset(name, root, split) for split in SPLITS}
        except (OSError, ValueError) as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        parser.error("\n".join(wrong))

    record = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    entries = record.get("datasets", {})
    for name, splits in found.items():
        print(f"counting {name} ...", flush=True)
        entries[name] = describe(splits)
    record = {
        "quantiles": list(QUANTILES),
        "datasets": {name: entries[name] for name in COUNTED if name in entries},
    }
    write_text(chosen.out, json.dumps(record, indent=1) + "\n")
    print(chosen.out)


if __name__ == "__main__":
    main()
