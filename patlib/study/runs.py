"""The runs of a grid with their records, and their scores as tables."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from patlib.checks import check_choice
from patlib.config import identity
from patlib.data import DATASETS, SegmentationDataset
from patlib.metrics import score_groups, scores_of_counts
from patlib.records import RunRecord, read_images
from patlib.study.grids import PlannedRun, load_grid, load_records

ROOT = Path(__file__).parents[2]  # of the repository, where commands are run
#: the training images that hold each class, for records made before 0.2.0 (``study/scores.py``):
#: fingerprint of the training split -> number of each class
CLASS_IMAGES = ROOT / "study" / "records" / "class_images.json"

#: fingerprint of the test split -> how many images each room, drive or city has, in their order
TEST_GROUPS = ROOT / "study" / "records" / "test_groups.json"


class Benchmark(NamedTuple):
    """What runs must share to be compared: the images, their labels, and the network."""

    dataset: str
    model: str
    split_scheme: str
    void: str
    data_params: str = ""  # those that are not the usual ones, such as "rare_size 480"

    def __str__(self) -> str:
        """Such as ``NYUv2`` or, as the paper has it, ``NYUv2, 80/10/10 %, void a class``."""
        parts = [DATASETS[self.dataset].label]
        schemes = {"paper": "80/10/10 %", "grouped": "validation by group"}
        parts += [schemes[self.split_scheme]] if self.split_scheme in schemes else []
        if self.void == "class" and DATASETS[self.dataset].has_void:
            parts.append("void a class")
        parts += [self.data_params] if self.data_params else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Run:
    """A planned run of a grid, and its record if it is done.

    Attributes:
        planned: the run as the grid has it.
        record: None if it is not done.
        folder: of the records.
    """

    planned: PlannedRun
    record: RunRecord | None
    folder: Path

    @property
    def method(self) -> str:
        return self.planned.method

    @property
    def seed(self) -> int:
        return self.planned.settings["seed"]

    @property
    def benchmark(self) -> Benchmark:
        settings = self.planned.settings
        of_data = identity(settings).get("data_params", {})
        return Benchmark(
            *(settings[name] for name in Benchmark._fields[:-1]),
            ", ".join(f"{name} {value:g}" for name, value in of_data.items()),
        )

    def score(self, metric: str, split: str = "test") -> Any:
        """A score of the run: of its record, or else computed from its counts.

        Args:
            metric: such as ``"miou"``; see :class:`patlib.evaluation.Evaluation`.
            split: ``"test"`` or ``"validation"``.

        Raises:
            ValueError: the run has no such score.
        """
        stored = self.record.result[split]
        if metric in stored:
            return stored[metric]
        scores = self.all_scores(split)
        return scores[check_choice("metric", metric, list(scores))]

    def all_scores(self, split: str = "test") -> dict[str, Any]:
        """Every score of the run: those of its record, and those that its counts add.

        Records made before 0.2.0 lack some. ``boundary_iou`` and, of a run without
        ``validation_counts``, new scores on the validation part do not follow from its counts.
        """
        stored = self.record.result[split]
        name = "counts" if split == "test" else f"{split}_counts"
        counts = self._read([name]).get(name)
        if counts is None:
            return dict(stored)
        groups = score_groups(self.record.result["class_counts"], self.class_images)
        return {**scores_of_counts(counts, groups), **stored}

    @property
    def class_images(self) -> list[int] | None:
        """Training images that hold each class, (L,); None if nobody counted them."""
        if "class_images" in self.record.result:
            return self.record.result["class_images"]
        if not CLASS_IMAGES.is_file():  # not in a clone
            return None
        fingerprint = self.record.provenance["data"]["train"]
        return json.loads(CLASS_IMAGES.read_text()).get(fingerprint)

    @property
    def test_groups(self) -> list[int]:
        """Images of each group (room, drive) of the test part, in their order.

        If the data set has groups that nobody has counted (``study/scores.py --data FOLDER`` does,
        for the records of this repository), all images are one group, of neighbours.
        """
        known = json.loads(TEST_GROUPS.read_text()) if TEST_GROUPS.is_file() else {}
        fingerprint = self.record.provenance["data"]["test"]
        if fingerprint in known:
            return known[fingerprint]
        number = self.record.provenance["num_images"]["test"]
        dataset = DATASETS[self.planned.settings["dataset"]]
        has_groups = dataset.groups is not SegmentationDataset.groups
        return [number] if has_groups else [1] * number

    @property
    def images_path(self) -> Path:
        """The file of :meth:`images`; FileNotFoundError if it is not beside the record."""
        path = self.folder / f"{self.planned.name}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"there is a record but no {path}: copy both files of a run")
        return path

    def images(self, names: Sequence[str] = ("counts", "shown", "labels")) -> dict[str, np.ndarray]:
        """What the run keeps of its N test images.

        Args:
            names: of the arrays, see :func:`patlib.train`. Records made before 0.2.0 have only the
                three of the default: ``counts`` int32 (N, 3, L), true positives, true and predicted
                pixels of each class; ``shown`` (K,), numbers of K images; ``labels`` uint8
                (K, H, W), their predicted labels.

        Raises:
            FileNotFoundError, ValueError: see :func:`patlib.records.read_images`.
        """
        arrays = self._read(names)
        return {name: arrays[name] for name in names}

    def _read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return read_images(self.images_path, self.record.images_sha256, names)


def load_runs(
    grid: str | Path, records: str | Path, seeds: Sequence[int] | None = None
) -> list[Run]:
    """The runs of a grid file with their records, in the grid's order.

    Of a method with several candidates only one is left, see :func:`choose_candidates`.

    Args:
        grid: a file of study/grids.
        records: folder of the records. It may lack any of them, or not exist.
        seeds: the seeds to load; None for all.

    Raises:
        ValueError: two runs have the same benchmark, method, seed and candidate.
    """
    planned = [p for p in load_grid(grid) if seeds is None or p.settings["seed"] in seeds]
    done = load_records(planned, records)
    runs = [Run(p, done.get(p.name), Path(records)) for p in planned]
    keys = pd.Series([f"{(*r.benchmark, r.method, r.seed, r.planned.candidate)}" for r in runs])
    if doubles := sorted(set(keys[keys.duplicated()])):
        raise ValueError(f"{grid} runs more than once: {', '.join(doubles)}")
    return choose_candidates(runs)


def choose_candidates(runs: Iterable[Run]) -> list[Run]:
    """Of each tuned method, keep the runs of the candidate with the best validation score.

    Best is the highest mean validation mIoU over the seeds (the first of equals); test scores are
    not used. While a run of any candidate is missing, no candidate is chosen and the method counts
    as not run.
    """
    kept = []
    for members in by_benchmark(runs).values():
        for method in by_method(members).values():
            candidates = defaultdict(list)
            for run in method:
                candidates[run.planned.candidate].append(run)
            if len(candidates) == 1:
                kept += method
            elif any(run.record is None for run in method):
                kept += [Run(run.planned, None, run.folder) for run in candidates[0]]
            else:
                kept += max(
                    candidates.values(),
                    key=lambda tried: np.mean([run.score("miou", "validation") for run in tried]),
                )
    return kept


def chosen_settings(run: Run, planned: Iterable[PlannedRun]) -> str:
    """The settings of a run that differ between the candidates of its method.

    Args:
        run: one of the chosen candidate.
        planned: the runs of the grid.
    """

    def flat(settings):
        return {"learning rate": settings["learning_rate"], **settings["loss_params"]}

    tried = [flat(p.settings) for p in planned if p.method == run.method]
    return ", ".join(
        f"{name} {value}"
        for name, value in flat(run.planned.settings).items()
        if any(settings.get(name) != value for settings in tried)
    )


def by_benchmark(runs: Iterable[Run]) -> dict[Benchmark, list[Run]]:
    """Benchmark -> its runs, in the order of the grid."""
    return _grouped(runs, lambda run: run.benchmark)


def by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Method -> its runs, in the order of the grid."""
    return _grouped(runs, lambda run: run.method)


def _grouped(runs, key):
    groups = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return dict(groups)


def scores(runs: Iterable[Run], metric: str = "miou", split: str = "test") -> pd.DataFrame:
    """One score of every run: columns ``method``, ``seed`` and ``score`` (NaN without a record)."""
    rows = [(r.method, r.seed, r.score(metric, split) if r.record else np.nan) for r in runs]
    return pd.DataFrame(rows, columns=["method", "seed", "score"])


def summarize(runs: Iterable[Run], metric: str = "miou", split: str = "test") -> pd.DataFrame:
    """The scores of each method over its seeds: a row for each, in the order of the grid.

    Returns:
        Columns ``mean`` (NaN if nothing was run), ``std`` (of a sample: divided by n - 1; NaN for
        fewer than two runs), ``n`` (runs with a record) and ``planned`` (runs in the grid).
    """
    by_method = scores(runs, metric, split).groupby("method", sort=False)["score"]
    return by_method.agg(mean="mean", std="std", n="count", planned="size")


def missing_runs(grid: str | Path, records: str | Path) -> tuple[str, str]:
    """What is shown in the place of results that are missing.

    Counts every run of the grid file, also those that a tuned method chooses from.

    Returns:
        How many of the runs have a record, without a full stop; and the command that starts the
        others.
    """
    planned = load_grid(grid)
    number, done = len({p.name for p in planned}), len(load_records(planned, records))
    grid = Path(grid)
    path = grid.relative_to(ROOT) if grid.is_relative_to(ROOT) else grid
    verb, rest = ("are" if done > 1 else "is"), ("the others" if done else "them")
    sentence = f"{done or 'None'} of the {number} runs of {path.name} {verb} done"
    sentence += f"{'' if done else ' yet'}; this starts {rest}"
    datasets = {p.settings["dataset"] for p in planned}
    if "cityscapes" in datasets:
        sentence += ", with a copy of Cityscapes of your own, which may not be redistributed"
    data = "" if datasets == {"synthetic"} else " --data FOLDER"
    return sentence, f"python study/run.py {path}{data} --jobs 2"
