"""Write the scores of all records as CSV: python study/scores.py [--data FOLDER]

``study/records/scores.csv`` has a row for each run: its settings, its scores on test, on validation
(``validation_...``), and on test under the shift of the logits that validation chose
(``shifted_...``). ``study/records/class_scores.csv`` has a row for each run and class, of the test
part. Scores are in [0, 1] and rounded to six decimals; an empty field is one that the run does not
have, or 0 / 0.

With ``--data``, ``study/records/test_groups.json`` says how many test images each room or drive
has, and ``study/records/class_images.json`` how many training images hold each class, for records
made before 0.2.0.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a bare clone, not installed, can run it

from patlib.data import DATASETS, SegmentationDataset, class_sizes, load_arrays  # noqa: E402
from patlib.files import write_text  # noqa: E402
from patlib.records import RunRecord  # noqa: E402
from patlib.study.grids import PlannedRun, data_root  # noqa: E402
from patlib.study.runs import CLASS_IMAGES, TEST_GROUPS, Run  # noqa: E402
from patlib.training import open_split  # noqa: E402

RECORDS = ROOT / "study" / "records"
OF_CLASSES = ("iou", "precision", "recall", "predicted_ratio")
DECIMALS = 6


def read_runs(folder: Path) -> list[Run]:
    """All runs with a record in a folder, by name."""
    records = [RunRecord.load(path) for path in sorted(folder.glob("*.json"))]
    return [Run(PlannedRun(r.config["loss"], r.config), r, folder) for r in records]


def score_table(runs: Iterable[Run]) -> pd.DataFrame:
    """A row for each run: name, settings and scores."""
    rows = []
    for run in runs:
        row = {
            **_numbers(run.all_scores("test")),
            **_numbers(run.all_scores("validation"), "validation_"),
        }
        if "shifted" in run.record.result:
            chosen = run.record.result["shifted"]["any"]
            row["prior_shift"] = json.dumps(chosen["prior_shift"])
            row.update(_numbers(chosen["test"], "shifted_"))
        settings = {name: _text(value) for name, value in run.planned.settings.items()}
        rows.append({"run": run.planned.name, **settings, **row})
    return pd.DataFrame(rows)


def class_table(runs: Iterable[Run]) -> pd.DataFrame:
    """A row for each run and class: its share of the training pixels, and its test scores."""
    rows = []
    for run in runs:
        counts = pd.Series(run.record.result["class_counts"])
        scores = run.all_scores("test")
        columns = {
            "run": run.planned.name,
            "class": run.record.result["class_names"],
            "training_share": (counts / counts.sum()).round(DECIMALS),
            "training_images": run.class_images,
            **{name: pd.Series(scores[name]).round(DECIMALS) for name in OF_CLASSES},
        }
        rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def _numbers(scores: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The scores that are one number."""
    return {
        prefix + name: round(score, DECIMALS)
        for name, score in scores.items()
        if not isinstance(score, list)
    }


def _text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def count_test_groups(runs: Iterable[Run], data: Path) -> dict[str, list[int]]:
    """Images of each group of the test split, by its fingerprint; none for groups of one image."""
    known = json.loads(TEST_GROUPS.read_text()) if TEST_GROUPS.is_file() else {}
    for run in runs:
        fingerprint = run.record.provenance["data"]["test"]
        dataset = DATASETS[run.planned.settings["dataset"]]
        if fingerprint in known or dataset.groups is SegmentationDataset.groups:
            continue
        config = run.planned.config(data_root(dataset.name, data), "unused")
        test = open_split(config, "test")
        if load_arrays(test).fingerprint != fingerprint:
            raise ValueError(f"--data must hold the data of {run.planned.name}, got others")
        groups = test.groups(test.samples)
        known[fingerprint] = [len(list(part)) for _, part in itertools.groupby(groups)]
    return known


def count_class_images(runs: Iterable[Run], data: Path) -> dict[str, list[int]]:
    """Training images that hold each class, by the fingerprint of the training split."""
    known = json.loads(CLASS_IMAGES.read_text()) if CLASS_IMAGES.is_file() else {}
    for run in runs:
        fingerprint = run.record.provenance["data"]["train"]
        if "class_images" in run.record.result or fingerprint in known:
            continue
        config = run.planned.config(data_root(run.planned.settings["dataset"], data), "unused")
        dataset = open_split(config, "train")
        arrays = load_arrays(dataset)
        if arrays.fingerprint != fingerprint:
            raise ValueError(f"--data must hold the data of {run.planned.name}, got others")
        sizes = class_sizes(arrays, dataset.num_classes)
        known[fingerprint] = (sizes > 0).sum(0).tolist()
    return known


def write_lists(path: Path, lists: dict[str, list[int]]) -> None:
    lines = [f' "{name}": {json.dumps(numbers)}' for name, numbers in sorted(lists.items())]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="holds camvid/, nyuv2/, ...")
    parser.add_argument("--records", type=Path, default=RECORDS, help="holds runs/")
    options = parser.parse_args(arguments)
    try:
        runs = read_runs(options.records / "runs")
        counted = {}
        if options.data:
            counted[CLASS_IMAGES] = count_class_images(runs, options.data)
            counted[TEST_GROUPS] = count_test_groups(runs, options.data)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not runs:
        parser.error(f"--records must hold runs/*.json, got {str(options.records)!r}")
    for path, lists in counted.items():
        write_lists(path, lists)
    for table, name in ((score_table, "scores.csv"), (class_table, "class_scores.csv")):
        text = table(runs).to_csv(index=False, lineterminator="\n")
        print(write_text(options.records / name, text))


if __name__ == "__main__":
    main()
