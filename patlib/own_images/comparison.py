"""Train the runs of a plan, and compare the losses, each with its best shift."""

import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.fabric.loggers import Logger
from scipy import stats

from patlib.checkpoints import PREVIOUS
from patlib.data.cache import whole_folder
from patlib.metrics import score_groups, scores_of_counts
from patlib.own_images.plan import FEW_SEEDS, MANY_SEEDS, OVERRUN, Plan, revise, save_plan
from patlib.prediction import Predictor
from patlib.records import CHOSEN, IMAGES, RECORD, RunRecord
from patlib.study.statistics import Difference, bootstrap_differences, interval, mean_iou
from patlib.study.wording import listing, signed
from patlib.training import open_split, train

RESAMPLES = 2000
# From so many steps, and below such a rise of validation mIoU (in points, the last third of the
# epochs, mean over the runs), nothing is said of the length of the runs.
ENOUGH_STEPS, ENOUGH_RISE = 1000, 1.0
WATCHED = 0.03  # of the time for training: how long the first run is watched, ...
WATCHED_SECONDS = 15.0  # ... and at least
OFF_PLAN = 0.08  # of that time: a plan that would miss it by more is made anew
MAX_SEEDS = 5
METRICS = {"miou": "mIoU", "head": "head", "mid": "middle", "tail": "tail"}


def train_all(
    plan: Plan,
    output_dir: str | Path,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Plan:
    """Train the runs of a plan, seed by seed, those that are finished left as they are.

    Machines are not always as fast as they were when they were measured. If the first epochs are
    much slower or faster, the plan is made anew, and the first run starts again. After each seed
    the seconds of the runs so far are compared with the plan: seeds that would end too late are
    left out, and as long as another one fits, it is added, unless the number of seeds was given.
    The plan in the folder then says so. The seconds are those of the records, so that a comparison
    that was killed goes on with the same account.

    Returns:
        The plan with the seeds that were run.
    """
    folder = Path(output_dir).expanduser()
    if finished := finished_runs(plan, folder):
        names = "; ".join(f"{method}, seed {seed}" for method, seed in finished)
        say(f"{len(finished)} of {len(plan.seeds) * len(plan.methods)} runs are there: {names}")
    plan = _with_true_speed(plan, folder, say, progress)
    left, done = plan.training_seconds, 0
    slack = OVERRUN * left
    while done < len(plan.seeds):
        seed = plan.seeds[done]
        spent = 0.0
        for method in plan.methods:
            config = plan.config(method, seed, folder)
            if not (Path(config.output_dir).expanduser() / RECORD).is_file():
                _say_run(plan, method, seed, say)
            spent += train(config, progress=progress).provenance["seconds"]["all"]
            # It would double the size of each run, and a comparison has many.
            (Path(config.output_dir).expanduser() / PREVIOUS).unlink(missing_ok=True)
        done += 1
        left -= spent
        if done < len(plan.seeds) and spent > left + slack:
            say(f"Slower than measured: {len(plan.seeds) - done} seed(s) left out.")
            plan = replace(plan, seeds=plan.seeds[:done], more_seeds=False)
            save_plan(plan, folder)
        elif done == len(plan.seeds) < MAX_SEEDS and plan.more_seeds and spent <= left + slack:
            say("Faster than measured: one more seed.")
            plan = replace(plan, seeds=[*plan.seeds, max(plan.seeds) + 1])
            save_plan(plan, folder)
    return plan


def _with_true_speed(plan: Plan, folder: Path, say: Callable[[str], None], progress: bool) -> Plan:
    """Train the first run. If its epochs show that the plan would miss the time, plan anew."""
    method = next(iter(plan.methods))
    config = plan.config(method, plan.seeds[0], folder)
    run = Path(config.output_dir).expanduser()
    if plan.revised or (run / RECORD).is_file():
        return plan
    _say_run(plan, method, plan.seeds[0], say)
    try:
        train(config, progress=progress, logger=Watch(plan))
    except OffPlanError as stopped:
        shutil.rmtree(run)  # before the plan changes: the folder would be refused under a new one
        save_plan(stopped.plan, folder)
        say(
            f"{stopped}, instead of {_seeds_and_epochs(plan)}: {stopped.plan}; "
            f"{stopped.plan.duration}."
        )
        return stopped.plan
    return plan


def finished_runs(plan: Plan, output_dir: str | Path) -> list[tuple[str, int]]:
    """Method and seed of the runs of a plan that have a record."""
    return [
        (method, seed)
        for seed in plan.seeds
        for method in plan.methods
        if (Path(plan.config(method, seed, output_dir).output_dir).expanduser() / RECORD).is_file()
    ]


def _say_run(plan: Plan, method: str, seed: int, say: Callable[[str], None]) -> None:
    methods = list(plan.methods)
    number = plan.seeds.index(seed) * len(methods) + methods.index(method) + 1
    ends = datetime.now() + timedelta(seconds=plan.run_seconds(method))
    say(
        f"run {number} of {len(plan.seeds) * len(methods)}: {method}, seed {seed}; this run ends "
        f"at about {ends:%H:%M:%S}"
    )


class OffPlanError(Exception):
    """The first run shows that all would end far from the plan; ``plan`` is a better one."""

    def __init__(self, slowness: float, plan: Plan):
        super().__init__(f"Epochs take {slowness:.2f} times as long as measured. A new plan")
        self.plan = plan


class Watch(Logger):
    """Looks once, after some epochs of the first run, whether they take the planned seconds.

    Raises:
        OffPlanError: all would end more than ``OFF_PLAN`` from the time that there is, and other
            epochs or seeds would not.
    """

    name, version = "watch", None

    def __init__(self, plan: Plan):
        self.plan = plan
        self.epochs, self.started, self.looked = 0, time.perf_counter(), False

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        plan, seconds = self.plan, time.perf_counter() - self.started
        self.epochs += 1
        enough = seconds >= max(WATCHED_SECONDS, WATCHED * plan.training_seconds)
        if self.looked or not enough:
            return
        self.looked = True
        slowness = seconds / self.epochs / plan.epoch_seconds[next(iter(plan.methods))]
        better = revise(plan, slowness, seconds)
        miss = abs(slowness * plan.planned_seconds - plan.training_seconds)
        new_miss = abs(better.planned_seconds - better.training_seconds)
        if miss > max(OFF_PLAN * plan.training_seconds, new_miss) and _runs(better) != _runs(plan):
            raise OffPlanError(slowness, better)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to do."""


def _seeds_and_epochs(plan: Plan) -> str:
    seeds, epochs = _runs(plan)
    return f"{seeds} seed{'s' * (seeds > 1)} of {epochs} epoch{'s' * (epochs > 1)}"


def _runs(plan: Plan) -> tuple[int, int]:
    return len(plan.seeds), plan.settings["epochs"]


@dataclass(frozen=True)
class Trained:
    """A finished run: its counts of both splits, unshifted and under each shift.

    Attributes:
        method, seed: of the plan.
        folder: of the run.
        record: of the run.
        shifts: the shifts of the logits, ``{kind: strength}``.
        counts: split -> (1 + K, N, 3, L); the first is without shift, then those of ``shifts``.
    """

    method: str
    seed: int
    folder: Path
    record: RunRecord
    shifts: list[dict[str, float]]
    counts: dict[str, np.ndarray]


def load_trained(plan: Plan, output_dir: str | Path) -> list[Trained]:
    """The runs of a plan, all of which must be finished."""
    found = []
    for method in plan.methods:
        for seed in plan.seeds:
            folder = Path(plan.config(method, seed, output_dir).output_dir).expanduser()
            with np.load(folder / IMAGES) as file:
                stored = {name: file[name] for name in file}
            kinds, strengths = stored["shift_kinds"].tolist(), stored["shift_strengths"].tolist()
            shifts = [{k: s} for k, s in zip(kinds, strengths, strict=True)]
            counts = {}
            for split, prefix in {"test": "", "validation": "validation_"}.items():
                plain = stored[f"{prefix}counts"].astype(np.int64)
                shifted = np.repeat(plain[None], len(shifts), axis=0)
                shifted[:, :, 0] = stored[f"{prefix}shifted_tp"]
                shifted[:, :, 2] = stored[f"{prefix}shifted_predicted"]
                counts[split] = shifted
            record = RunRecord.load(folder / RECORD)
            found.append(Trained(method, seed, folder, record, shifts, counts))
    return found


@dataclass(frozen=True)
class Comparison:
    """Losses compared, each with the shift that validation chose.

    Attributes:
        plan: the runs.
        class_names: names of the classes.
        runs: method -> its runs.
        shifts: method -> the shift with the best mean validation mIoU.
        best: the method with the best mean validation mIoU, so shifted.
        differences: metric -> each other method minus the best, on the test images.
    """

    plan: Plan
    class_names: tuple[str, ...]
    runs: dict[str, list[Trained]]
    shifts: dict[str, dict[str, float]]
    best: str
    differences: dict[str, list[Difference]]

    def counts(self, method: str, split: str = "test") -> np.ndarray:
        """Counts of the runs of a method under its shift, (R, N, 3, L)."""
        runs, shift = self.runs[method], self.shifts[method]
        return np.stack([run.counts[split][run.shifts.index(shift)] for run in runs])

    @property
    def groups(self) -> dict[str, list[int]]:
        """Name -> classes of it, see :func:`patlib.metrics.score_groups`."""
        result = self.runs[self.best][0].record.result
        return score_groups(result["class_counts"], result["class_images"])

    def scores(self, method: str, split: str = "test") -> list[dict[str, Any]]:
        """All scores of each seed of a method under its shift."""
        return [scores_of_counts(c, self.groups) for c in self.counts(method, split)]

    @property
    def best_run(self) -> Trained:
        """Of the best method, the run with the best validation mIoU."""
        miou = [scores["miou"] for scores in self.scores(self.best, "validation")]
        return self.runs[self.best][int(np.argmax(miou))]


def compare(
    plan: Plan, runs: Sequence[Trained], class_names: Sequence[str], resamples: int = RESAMPLES
) -> Comparison:
    """Choose shift and loss on the validation images, and judge the choice on the test images."""
    by_method: dict[str, list[Trained]] = defaultdict(list)
    for run in runs:
        by_method[run.method].append(run)
    shifts, validation = {}, {}
    for method, members in by_method.items():
        grid = members[0].shifts
        miou = [
            np.mean([_miou(run.counts["validation"][k]) for run in members])
            for k in range(len(grid))
        ]
        # Of equals the smallest.
        order = sorted(range(len(grid)), key=lambda k: abs(*grid[k].values()))
        chosen = max(order, key=lambda k: np.nan_to_num(miou[k], nan=-1))
        shifts[method], validation[method] = grid[chosen], miou[chosen]
    best = max(validation, key=lambda method: np.nan_to_num(validation[method], nan=-1))
    found = Comparison(plan, tuple(class_names), dict(by_method), shifts, best, {})
    differences = {
        metric: [
            _difference(found, other, metric, resamples) for other in by_method if other != best
        ]
        for metric in METRICS
    }
    return replace(found, differences=differences)


def _miou(counts: np.ndarray, classes: Sequence[int] | None = None) -> float:
    """Mean IoU of counts (N, 3, L) summed over the images; NaN where no class is anywhere."""
    return float(mean_iou(counts.sum(0), classes))


def _difference(found: Comparison, other: str, metric: str, resamples: int) -> Difference:
    first, second = found.counts(other), found.counts(found.best)
    classes = None if metric == "miou" else found.groups[metric]
    by_seed = {
        run.seed: _miou(a, classes) - _miou(b, classes)
        for run, a, b in zip(found.runs[other], first, second, strict=True)
    }
    draws = bootstrap_differences(first, second, classes, resamples)
    variance = float(np.nanvar(draws)) if np.isfinite(draws).any() else math.nan
    low, high = interval(list(by_seed.values()), variance)
    return Difference(other, found.best, by_seed, low, high)


def score_table(found: Comparison) -> pd.DataFrame:
    """A row for each run: method, seed, shift, and its scores on both splits, in [0, 1]."""
    rows = []
    for method, runs in found.runs.items():
        for number, run in enumerate(runs):
            ((kind, strength),) = found.shifts[method].items()
            row = {"method": method, "seed": run.seed, "shift": kind, "strength": strength}
            for split in ("validation", "test"):
                scores = found.scores(method, split)[number]
                names = ("miou", "pixel_accuracy", "mean_accuracy", "head", "mid", "tail")
                row |= {f"{split}_{name}": scores[name] for name in names}
            iou = found.scores(method)[number]["iou"]
            row |= {f"test_iou: {n}": v for n, v in zip(found.class_names, iou, strict=True)}
            plain = scores_of_counts(run.counts["test"][_unshifted(run)], found.groups)
            row["test_miou_without_shift"] = plain["miou"]
            rows.append(row)
    return pd.DataFrame(rows)


def _unshifted(run: Trained) -> int:
    return next(i for i, shift in enumerate(run.shifts) if not any(shift.values()))


def shift_text(shift: Mapping[str, float]) -> str:
    """``τ = 0.5``, or ``no shift``."""
    ((kind, strength),) = shift.items()
    if not strength:
        return "no shift"
    text = f"{ {'tau': 'τ', 'kappa': 'κ'}[kind] } = {strength:g}"
    return text.replace("-", "−").replace(" ", "\u00a0")


def verdict(found: Comparison) -> list[str]:
    """What to take, why, how sure that is, and what would decide: sentences."""
    best, seeds = found.best, len(found.plan.seeds)
    shift = found.shifts[best]
    how = f" with the shift {shift_text(shift)}" if any(shift.values()) else " without a shift"
    mean = {split: 100 * np.nanmean([s["miou"] for s in found.scores(best, split)]) for split in
            ("validation", "test")}  # fmt: skip
    scored = (
        f"the best mIoU on the validation images, {mean['validation']:.1f} %, and "
        f"{mean['test']:.1f} % on the test images, which had no part in the choice"
    )
    judged = found.differences["miou"]
    same = [d for d in judged if d.verdict == "not distinguishable"]
    worse = [d.method for d in judged if d.verdict == "lower"]
    better = [d.method for d in judged if d.verdict == "higher"]
    if seeds == 1:
        said = [
            f"Not decided. {best}{how} has {scored}, and is in best/; but with one seed the order "
            "of the losses may be chance.",
            f"Test mIoU minus that of {best}, in points: {_each(judged)}.",
        ]
        if tails := [d for d in found.differences["tail"] if np.isfinite(d.mean)]:
            said.append(f"Tail IoU minus that of {best}, in points: {_each(tails)}.")
    elif same or better:
        said = [f"No clear winner. {best}{how} has {scored}, and is in best/."]
    else:
        said = [f"Take {best}{how}: it has {scored}, and is in best/."]
    if worse:
        said.append(f"Its test mIoU is higher than that of {listing(worse)}.")
    if better:
        said.append(
            f"On the test images {listing(better)} did better than it, which the validation images "
            "did not show: the two parts differ, or are small."
        )
    if same:
        said.append(
            f"In mIoU it cannot be told apart from {listing([d.method for d in same])}: if one of "
            "these is simpler for you, its mIoU does not speak against it."
        )
    tail = [d for d in found.differences["tail"] if d.verdict == "higher"]
    if tail:
        said.append(
            f"For the rarest third of the classes other losses did better, in points of tail IoU: "
            f"{_each(tail)}."
        )
    if behind := [d for d in found.differences["tail"] if d.verdict == "lower"]:
        said.append(
            f"For the rarest third of the classes it did better than others, which differ from it "
            f"by so many points of tail IoU: {_each(behind)}."
        )
    if not any(np.isfinite(s["tail"]) for s in found.scores(best)):
        said.append("The tail has no score: no test image holds one of its classes.")
    short = _short_runs(found)
    said += short
    if seeds == 1 or (same and seeds < FEW_SEEDS):
        how = "" if short else f": {_how_to_add(found, FEW_SEEDS)}"
        said.append(f"{'Then take' if short else 'Take'} {FEW_SEEDS} seeds or more{how}.")
    elif same:
        said += _what_would_decide(found, same)
    return said


def _each(differences: Iterable[Difference]) -> str:
    return "; ".join(f"{d.method} {signed(d.mean)}" for d in differences)


def _short_runs(found: Comparison) -> list[str]:
    """A warning where the runs are short: in steps, or because validation mIoU still rises."""
    record = found.best_run.record
    batches = record.provenance["num_images"]["train"] // record.config["batch_size"]
    steps = batches * record.config["epochs"]
    curves = [run.record.result["curves"]["validation_miou"]
              for runs in found.runs.values() for run in runs]  # fmt: skip
    rise = 100 * float(np.mean([curve[-1] - curve[-1 - len(curve) // 3] for curve in curves]))
    if steps >= ENOUGH_STEPS and rise <= ENOUGH_RISE:
        return []
    still = f", and validation mIoU rose by {rise:.1f} points in the last third" if rise > 0 else ""
    return [
        f"The runs are short: {steps} steps each{still}. In longer ones the order may be another. "
        "A larger --budget, with another --out, makes them longer; that comes before more seeds."
    ]


def _what_would_decide(found: Comparison, open_: Sequence[Difference]) -> list[str]:
    """How many seeds would tell the best from others, if the differences stay as they are."""
    needed = {d.method: seeds_needed(d) for d in open_}
    decidable = {method: number for method, number in needed.items() if number}
    equal = [method for method, number in needed.items() if not number]
    said = []
    if decidable:
        each = listing([f"{number} from {method}" for method, number in decidable.items()])
        said.append(
            "If the differences stay as they are, so many seeds in all would tell it from others: "
            f"{each}; {_how_to_add(found, max(decidable.values()))}."
        )
    if equal:
        images = found.counts(found.best).shape[1]
        said.append(
            f"Even {MANY_SEEDS} seeds would not tell it from {listing(equal)}: treat them as "
            f"equal, or compare on more than {images} test images."
        )
    return said


def seeds_needed(difference: Difference) -> int | None:
    """The number of seeds at which a difference's interval would exclude 0, if its mean stays.

    The errors are those of :func:`patlib.study.statistics.interval`: that of the seeds shrinks with
    their number, that of the test images does not. None if it would take more than ``MANY_SEEDS``.
    """
    n, mean = len(difference.by_seed), abs(difference.mean)
    spread = float(np.std(list(difference.by_seed.values()), ddof=1))

    def of_seeds(number: int) -> float:
        return stats.t.ppf(0.975, number - 1) * spread / math.sqrt(number)

    half = (difference.high - difference.low) / 2
    of_images = math.sqrt(max(half**2 - of_seeds(n) ** 2, 0))
    return next(
        (k for k in range(n + 1, MANY_SEEDS + 1) if math.hypot(of_seeds(k), of_images) < mean), None
    )


def _how_to_add(found: Comparison, seeds: int) -> str:
    there, planned = len(found.plan.seeds), found.plan.planned_seconds
    minutes = (seeds - there) * planned / there / 60
    return f"the same command with --seeds {seeds} adds them, in about {minutes:.1f} minutes"


def keep_best(found: Comparison, output_dir: str | Path) -> Path:
    """Copy the run to be used to ``best/``, and label the test images with it into ``labels/``.

    ``best/chosen.json`` has the shift, which ``patlib predict`` then takes.

    Returns:
        The folder ``best``.
    """
    folder = Path(output_dir).expanduser()
    best, run = folder / "best", found.best_run
    kept = [RECORD, IMAGES, "log.csv", "last.ckpt"]
    if best.exists():
        shutil.rmtree(best)
    chosen = {"method": found.best, "prior_shift": found.shifts[found.best]}
    with whole_folder(best) as beside:
        for name in kept:
            shutil.copyfile(run.folder / name, beside / name)
        (beside / CHOSEN).write_text(json.dumps(chosen, indent=1) + "\n")
    _label_test(found, best, folder / "labels")
    return best


def _label_test(found: Comparison, best: Path, labels: Path) -> None:
    from patlib.label_maps import LEGEND, Legend, write_label_map

    config = found.plan.config(found.best, found.plan.seeds[0], best.parent)
    samples = open_split(config, "test").samples
    shift = found.shifts[found.best]
    predictor = Predictor(best, device=config.device, prior_shift=shift)
    if labels.exists():
        shutil.rmtree(labels)
    legend = Legend(predictor.class_names, predictor.mask_values)
    with whole_folder(labels) as beside:
        for sample, label_map in zip(samples, predictor(s.image for s in samples), strict=True):
            write_label_map(beside / f"{sample.id}.png", label_map, legend)
        told = {**legend.describe(), "prior_shift": shift, "method": found.best}
        (beside / LEGEND).write_text(json.dumps(told, indent=1) + "\n")
