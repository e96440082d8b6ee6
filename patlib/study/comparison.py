"""Records of a grid, compared: scores by seed, and differences with what their chance part is.

Two things are left to chance in a difference between two methods: the seeds of the runs, and which
images happen to be in the test part. Runs of the same seed are compared pair by pair; the spread of
these differences, and a bootstrap over the test images (the same images for both methods), make one
interval, see :func:`interval`. Where it leaves out 0, a method is called higher or lower.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import integrate, stats

from patlib.metrics import class_groups
from patlib.records import RunRecord
from patlib.study.grids import PlannedRun, load_grid, load_records

# Labels of the data sets and networks in tables and figures.
DATASET_LABELS = {
    "synthetic": "embedded",
    "oxford_pet": "Oxford-IIIT Pet",
    "cityscapes": "Cityscapes",
    "nyuv2": "NYUv2",
    "camvid": "CamVid",
    "folder": "own images",
}
MODEL_LABELS = {
    "segnet": "SegNet",
    "unet": "U-Net",
    "attention_unet": "Attention U-Net",
    "unetplusplus": "U-Net++",
}
GROUPS = ("head", "mid", "tail")
ROOT = Path(__file__).parents[2]  # of the repository, where commands are run


class Place(NamedTuple):
    """What runs must share to be compared: the images, their labels, and the network."""

    dataset: str
    model: str
    split_scheme: str
    void: str

    def __str__(self) -> str:
        """Such as ``NYUv2`` or, as the paper has it, ``NYUv2, 80/10/10 %, void a class``."""
        parts = [DATASET_LABELS[self.dataset]]
        parts += ["80/10/10 %"] if self.split_scheme == "paper" else []
        parts += ["void a class"] if self.void == "class" and self.dataset != "oxford_pet" else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Run:
    """A cell of a grid, and its record if it was run.

    Attributes:
        cell: the cell.
        record: None if it was not run.
        folder: of the records.
    """

    cell: PlannedRun
    record: RunRecord | None
    folder: Path

    @property
    def place(self) -> Place:
        return Place(*(self.cell.settings[name] for name in Place._fields))

    def score(self, metric: str, split: str = "test") -> float:
        """A score of the record, in [0, 1]; of ``SegmentationMetrics.compute``."""
        return self.record.result[split][metric]

    def images(self) -> dict[str, np.ndarray]:
        """``counts`` int32 (N, 3, L), ``shown`` (K,) and ``labels`` uint8 (K, H, W).

        See :func:`patlib.training.describe_images`.
        """
        path = self.folder / f"{self.cell.name}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"there is a record but no {path}: copy both files of a run")
        with np.load(path) as file:
            return {name: file[name] for name in ("counts", "shown", "labels")}


def load_runs(grid: str | Path, records: str | Path, seeds: Sequence[int] | None = None):
    """The cells of a grid file with their records: list of :class:`Run`, in the grid's order.

    Of a method with several candidates only one is left, see :func:`choose_candidates`.

    Args:
        grid: a file of study/grids.
        records: folder of the records. It may lack any of them, or not exist.
        seeds: those that count; None for all.

    Raises:
        ValueError: two cells of one place, method, seed and candidate.
    """
    cells = [c for c in load_grid(grid) if seeds is None or c.settings["seed"] in seeds]
    found = load_records(cells, records)
    runs = [Run(cell, found.get(cell.name), Path(records)) for cell in cells]
    keys = [(*r.place, r.cell.method, r.cell.settings["seed"], r.cell.candidate) for r in runs]
    if doubles := {str(key) for key in keys if keys.count(key) > 1}:
        raise ValueError(f"{grid} runs more than once: {', '.join(sorted(doubles))}")
    return choose_candidates(runs)


def to_do(grid: str | Path, records: str | Path) -> tuple[str, str]:
    """What stands in the place of results that are missing: a sentence, and what runs the rest.

    Counts every run of the grid file, also those that a tuned method chooses from.

    Returns:
        How many of the runs have a record, without a full stop; and the command.
    """
    cells = load_grid(grid)
    planned, done = len({cell.name for cell in cells}), len(load_records(cells, records))
    grid = Path(grid)
    path = grid.relative_to(ROOT) if grid.is_relative_to(ROOT) else grid
    verb, rest = ("are" if done > 1 else "is"), ("the others" if done else "them")
    sentence = f"{done or 'None'} of the {planned} runs of {path.name} {verb} done"
    sentence += f"{'' if done else ' yet'}; this starts {rest}"
    datasets = {cell.settings["dataset"] for cell in cells}
    if "cityscapes" in datasets:
        sentence += ", with a copy of Cityscapes of your own, which may not be redistributed"
    data = "" if datasets == {"synthetic"} else " --data FOLDER"
    return sentence, f"python study/run.py {path}{data} --jobs 2"


def choose_candidates(runs: Iterable[Run]) -> list[Run]:
    """Of each method that is tuned, the runs of the candidate with the best validation score.

    Best is the mean validation mIoU over the seeds; the first of equals. The test scores are not
    looked at. As long as a run of any candidate is missing, nothing is chosen, and the method
    counts as not run.
    """
    kept = []
    for methods in by_place(runs).values():
        for members in methods.values():
            candidates = defaultdict(list)
            for run in members:
                candidates[run.cell.candidate].append(run)
            if len(candidates) == 1:
                kept += members
            elif any(run.record is None for run in members):
                kept += [Run(run.cell, None, run.folder) for run in candidates[0]]
            else:
                kept += max(
                    candidates.values(),
                    key=lambda tried: np.mean([run.score("miou", "validation") for run in tried]),
                )
    return kept


def chosen_settings(run: Run, cells: Iterable[PlannedRun]) -> str:
    """What a tuned method chose: the settings of a run that differ between the candidates.

    Args:
        run: one of the chosen candidate.
        cells: of the grid.
    """

    def flat(settings):
        return {"learning rate": settings["learning_rate"], **settings["loss_params"]}

    tried = [flat(cell.settings) for cell in cells if cell.method == run.cell.method]
    return ", ".join(
        f"{name} {value}"
        for name, value in flat(run.cell.settings).items()
        if any(settings.get(name) != value for settings in tried)
    )


def by_place(runs: Iterable[Run]) -> dict[Place, dict[str, list[Run]]]:
    """Place -> method -> its runs, all in the order of the grid."""
    places = defaultdict(lambda: defaultdict(list))
    for run in runs:
        places[run.place][run.cell.method].append(run)
    return {place: dict(methods) for place, methods in places.items()}


def summarize(runs: Iterable[Run], metric: str = "miou", split: str = "test") -> list[dict]:
    """One row for each place and method, in the order of the grid.

    Returns:
        dicts with ``place, method``, ``scores`` (seed -> score in [0, 1]), ``mean``,
        ``std`` over the seeds (of a sample: divided by n - 1; NaN for fewer than two), ``n`` (runs
        with a record) and ``planned`` (runs in the grid). No record: ``mean`` is NaN.
    """
    rows = []
    for place, methods in by_place(runs).items():
        for method, members in methods.items():
            scores = {
                run.cell.settings["seed"]: run.score(metric, split)
                for run in members
                if run.record is not None
            }
            values = list(scores.values())
            rows.append(
                dict(
                    place=place,
                    method=method,
                    scores=scores,
                    mean=float(np.mean(values)) if values else math.nan,
                    std=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                    n=len(values),
                    planned=len(members),
                )
            )
    return rows


def describe(runs: Iterable[Run]) -> list[dict]:
    """What was run, one row for each place.

    Returns:
        dicts with ``place, settings`` (those of the first run), ``seeds`` (of the grid),
        ``seeds_done`` (those with a record of any method), ``n`` (runs with a record),
        ``planned``, and, where there is a record, ``images`` (of each
        split), ``devices`` and ``minutes`` (the median run, training and scoring).
    """
    rows = []
    for place, methods in by_place(runs).items():
        members = [run for method in methods.values() for run in method]
        done = [run for run in members if run.record]
        made_of = [run.record.provenance for run in done]
        row = dict(
            place=place,
            settings=members[0].cell.settings,
            seeds=sorted({run.cell.settings["seed"] for run in members}),
            seeds_done=sorted({run.cell.settings["seed"] for run in done}),
            n=len(made_of),
            planned=len(members),
        )
        if made_of:
            row["images"] = made_of[0]["num_images"]
            row["devices"] = sorted({origin["device"] for origin in made_of})
            row["minutes"] = float(np.median([o["seconds"]["all"] for o in made_of])) / 60
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Difference:
    """A mean test score of a method minus that of another, over the seeds that both have.

    Attributes:
        method: label of the one.
        reference: label of the other.
        by_seed: seed -> difference, in [-1, 1].
        low: lower end of the 95 % interval, over which seeds and test images; with one seed, over
            the images alone.
        high: its upper end.
    """

    method: str
    reference: str
    by_seed: dict[int, float]
    low: float
    high: float

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.by_seed.values())))

    @property
    def word(self) -> str:
        """``"higher"`` or ``"lower"`` if the interval leaves out 0.

        Else ``"not distinguishable"``, as is a difference that prints as 0.0 points. With one seed
        ``"not judged"``: nothing is known about others.
        """
        if len(self.by_seed) == 1:
            return "not judged"
        if signed(self.mean) == signed(0) or not (self.low > 0 or self.high < 0):
            return "not distinguishable"
        return "higher" if self.mean > 0 else "lower"

    @property
    def judged(self) -> bool:
        """True if one is called higher or lower than the other."""
        return self.word in ("higher", "lower")

    @property
    def brief(self) -> str:
        """In percentage points, for a table, such as ``lower: −2.5 (−3.8 to −1.2)``."""
        alone = "images alone " if self.word == "not judged" else ""
        ends = f"{alone}{_end(self.low)} to {_end(self.high)}"
        return f"{self.word}: {signed(self.mean)} ({ends})"

    def __str__(self) -> str:
        """The difference in words, in percentage points: a sentence without its full stop."""
        ends = f"{_end(self.low)} to {_end(self.high)}"
        if self.word == "not judged":
            return (
                f"{self.method} minus {self.reference} is {signed(self.mean)} points with one seed,"
                f" not judged (95 % interval over test images alone {ends})"
            )
        where = f"95 % interval {ends}, {len(self.by_seed)} seeds"
        if self.word == "not distinguishable":
            return (
                f"{self.method} and {self.reference} are not distinguishable "
                f"({signed(self.mean)} points, {where})"
            )
        size = f"{100 * abs(self.mean):.1f}"
        return f"{self.method} is {self.word} than {self.reference} by {size} points ({where})"


def compare(
    runs: Iterable[Run],
    method: str,
    reference: str,
    metric: str = "miou",
    resamples: int = 2000,
    block: int = 1,
    seed: int = 0,
) -> Difference | None:
    """A method against another on the test images of one place.

    Args:
        runs: of one place; others are refused.
        method, reference: labels of the grid.
        metric: ``"miou"``, or the mean IoU of the ``"head"``, ``"mid"`` or ``"tail"``.
        resamples, block, seed: of :func:`bootstrap_differences`.

    Returns:
        None if they have no seed in common, or there is no record of one of them.
    """
    runs = list(runs)
    if len({run.place for run in runs}) > 1:
        raise ValueError("runs of several data sets or networks cannot be compared with each other")
    if metric not in ("miou", *GROUPS):
        raise ValueError(f"metric={metric!r} is not allowed: 'miou', 'head', 'mid' or 'tail'")
    first, second = (
        {r.cell.settings["seed"]: r for r in runs if r.cell.method == label and r.record}
        for label in (method, reference)
    )
    seeds = [s for s in first if s in second]
    if not seeds:
        return None
    _check_same_images([side[s] for side in (first, second) for s in seeds])
    counts = [np.stack([side[s].images()["counts"] for s in seeds]) for side in (first, second)]
    classes = None
    if metric != "miou":
        classes = class_groups(first[seeds[0]].record.result["class_counts"])[metric]
    drawn = bootstrap_differences(*counts, classes, resamples, block, seed)
    by_seed = {s: first[s].score(metric) - second[s].score(metric) for s in seeds}
    low, high = interval(list(by_seed.values()), float(np.var(drawn)))
    return Difference(method, reference, by_seed, low, high)


def interval(by_seed: Sequence[float], image_variance: float) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds: over which seeds, and over which test images.

    Each alone would give an interval: Student's, mean ± t s / √n with n - 1 degrees of freedom and
    s² the variance of the n seeds on the test images at hand; and the normal one, mean ± 1.96 √w,
    with w the variance of the mean over which images there are. Half-widths of independent parts
    add as squares (Howe 1974):

        mean ± √(t² s² / n + 1.96² w).

    It holds the truth at least 95 times in 100, and up to 99 where the seeds are few and both parts
    alike. With one seed there is only the second part, and nothing is said about other seeds.

    Args:
        by_seed: n values, one for each seed.
        image_variance: w, such as the variance of :func:`bootstrap_differences`.

    Returns:
        Its ends, in the unit of the values.
    """
    n = len(by_seed)
    half = stats.norm.ppf(0.975) * math.sqrt(image_variance)
    if n > 1:
        seeds = stats.t.ppf(0.975, n - 1) * np.std(by_seed, ddof=1) / math.sqrt(n)
        half = math.hypot(half, seeds)
    mean = float(np.mean(by_seed))
    return float(mean - half), float(mean + half)


def _check_same_images(runs: Sequence[Run]) -> None:
    """ValueError if the runs were not scored on the same test images: pairs need the same ones."""
    tested = {run.record.provenance["data"]["test"]: run.cell.name for run in runs}
    if len(tested) > 1:
        raise ValueError(f"scored on different test images: {', '.join(tested.values())}")


def bootstrap_differences(
    first: np.ndarray,
    second: np.ndarray,
    classes: Sequence[int] | None = None,
    resamples: int = 2000,
    block: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Differences in mean IoU that other test images would have given.

    Images are drawn with replacement, the same ones for both sides and all runs. Counts are summed
    over the images, then come IoU and its mean over the classes (those in neither truth nor
    prediction left out), then the mean over runs. What varies from seed to seed is not in them.

    Neighbouring frames of a video look alike: drawn one by one they count as more images than they
    are, and the spread comes out too small. ``block`` draws runs of neighbours instead (the
    circular block bootstrap, Politis and Romano 1992).

    Args:
        first, second: (R, N, 3, L), pixels of each class found, true and predicted in each of N
            images, of R runs; R may differ between the two.
        classes: those that the mean is over; None for all.
        resamples: how many test parts are drawn.
        block: how many neighbouring images are drawn together; at most N / 2.
        seed: of the draws.

    Returns:
        (resamples,) differences of the means, first minus second, in [-1, 1].

    Raises:
        ValueError: shapes that do not fit each other, or a block longer than N / 2.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 4 or first.shape[1:] != second.shape[1:] or first.shape[2] != 3:
        raise ValueError(
            f"counts of shape {first.shape} and {second.shape} are not allowed: both take "
            "(runs, images, 3, classes), with the same images and classes"
        )
    num_images = first.shape[1]
    if not 1 <= block <= num_images / 2:
        raise ValueError(
            f"block={block} is not allowed with {num_images} test images: at least 1, at most half "
            "of them"
        )
    if resamples < 1:
        raise ValueError(f"resamples={resamples} is not allowed: it takes at least 1")
    rng = np.random.default_rng(seed)
    starts = rng.integers(num_images, size=(resamples, math.ceil(num_images / block), 1))
    drawn = ((starts + np.arange(block)) % num_images).reshape(resamples, -1)[:, :num_images]
    weights = np.stack([np.bincount(row, minlength=num_images) for row in drawn])
    # Sums of whole numbers: exact in float64.
    means = [mean_iou(_resample(weights, counts), classes).mean(1) for counts in (first, second)]
    return means[0] - means[1]


def chance_range(scores: np.ndarray) -> tuple[float, float]:
    """How far the means of K settings would lie apart if the setting did nothing.

    Runs of one seed start from the same weights and see the images in the same order: their scores
    rise and fall together. So a score is taken as setting + seed + rest, and only the rest, which
    is normal, is chance.

    Args:
        scores: (K, S), K settings with the same S seeds; both at least 2.

    Returns:
        The standard deviation of the rest (that of a two-way analysis of variance), and the
        expected range, largest minus smallest, of K means over S seeds with such a rest (Tippett
        1925). Both in the unit of the scores.

    Raises:
        ValueError: fewer than two settings or seeds.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or min(scores.shape) < 2:
        raise ValueError(
            f"scores of shape {scores.shape} are not allowed: (settings, seeds), two or more each"
        )
    settings, seeds = scores.shape
    rest = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
    scatter = math.sqrt((rest**2).sum() / ((settings - 1) * (seeds - 1)))
    # E[max - min] = ∫ 1 - Φ(x)^K - (1 - Φ(x))^K dx, of K standard normal draws
    width, _ = integrate.quad(
        lambda x: 1 - stats.norm.cdf(x) ** settings - stats.norm.sf(x) ** settings, -8, 8
    )
    return scatter, width * scatter / math.sqrt(seeds)


def _resample(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Counts (R, N, 3, L) summed over the images with weights (M, N): (M, R, 3, L)."""
    num_runs, num_images, *rest = counts.shape
    flat = counts.swapaxes(0, 1).reshape(num_images, -1).astype(float)
    return (weights.astype(float) @ flat).reshape(len(weights), num_runs, *rest)


def mean_iou(counts: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
    """Mean IoU from counts (..., 3, L) of pixels found, true and predicted, as in
    :class:`patlib.metrics.SegmentationMetrics`. NaN where no class of the mean is anywhere.
    """
    found, true, predicted = np.moveaxis(np.asarray(counts, dtype=float), -2, 0)
    union = true + predicted - found
    present = union > 0
    iou = np.divide(found, union, out=np.zeros_like(union), where=present)
    if classes is not None:
        iou, present = iou[..., list(classes)], present[..., list(classes)]
    number = present.sum(-1)
    return np.divide(iou.sum(-1), number, out=np.full(number.shape, np.nan), where=number > 0)


def glance(runs: Iterable[Run], resamples: int = 2000, block: int = 1) -> list[dict]:
    """Results at a glance: one row for each place of a grid.

    Returns:
        dicts with ``place``, ``seeds`` (the smallest number of runs a method has), and for
        ``miou`` and ``tail`` each a dict: ``best`` (the method with the highest mean), ``mean``
        (its mean), ``equals`` (the methods not called lower than it, itself among them),
        ``means`` (method -> mean) and ``pat`` (:class:`Difference` of PAT to CE, or None). A data
        set is left out as long as a method of the grid has no record on it: the best of some is
        no best.
    """
    rows = []
    for place, methods in by_place(runs).items():
        if not all(any(run.record for run in members) for members in methods.values()):
            continue
        members = [run for method in methods.values() for run in method if run.record]
        row = dict(place=place, seeds=min(s["n"] for s in summarize(members)))
        for metric in ("miou", "tail"):
            means = {s["method"]: s["mean"] for s in summarize(members, metric)}
            best = max(means, key=means.get)
            equals = [best]
            for method in means:
                if method != best:
                    difference = compare(members, method, best, metric, resamples, block)
                    if difference is None or difference.word != "lower":
                        equals.append(method)
            row[metric] = dict(
                best=best,
                mean=means[best],
                equals=[method for method in means if method in equals],
                means=means,
                pat=compare(members, "PAT", "CE", metric, resamples, block),
            )
        rows.append(row)
    return rows


def answer(rows: list[dict], metric: str) -> str:
    """Which loss should I use? A sentence from the rows of :func:`glance`, for one metric."""
    what = {"miou": "mean IoU over all classes", "tail": "mean IoU of the rare third"}[metric]
    if not rows:
        return f"For the {what} there is no answer yet: on no data set has every loss been run"
    common = [
        method
        for method in rows[0][metric]["means"]
        if all(method in row[metric]["equals"] for row in rows)
    ]
    names = listing(str(row["place"]) for row in rows)
    best = "the best, or not shown to be worse than the best,"
    if common:
        verb = "are" if len(common) > 1 else "is"
        return f"For the {what}: {listing(common)} {verb} {best} on {names}"
    each = "; ".join(f"on {row['place']} {listing(row[metric]['equals'])}" for row in rows)
    return f"For the {what} no loss is {best} on all of {names}: {each}"


def check_statement(paper: dict, statement: dict) -> tuple[list[float], bool]:
    """What the paper's tables give for a sentence of its text (an entry of ``statements``).

    Returns:
        The differences between the cells that the sentence is about (the smallest and the largest,
        where it gives a range), and whether they round to the printed numbers.
    """
    printed = statement["printed"]
    differences = [paper_cell(paper, a) - paper_cell(paper, b) for a, b in statement["tables"]]
    ends = [min(differences), max(differences)][: len(printed)]
    agrees = all(
        # A little more than half of the last digit: for what floating point does to a difference.
        abs(end - float(text)) <= 0.5001 * 10.0 ** -len(text.partition(".")[2])
        for end, text in zip(ends, printed, strict=True)
    )
    return ends, agrees


def check_bold(paper: dict) -> list[tuple[str, str]]:
    """Cells that the paper prints in bold though another in their column is better.

    Returns:
        (address of the bold cell, address of the best one), as :func:`paper_cell` takes them.
    """
    wrong = []
    for address in paper["bold"]:
        *before, _, dataset, metric = address.split(".")
        rows = [".".join([*before, loss, dataset, metric]) for loss in _descend(paper, before)]
        choose = min if metric == "dice_error" else max
        best = choose(rows, key=lambda row: paper_cell(paper, row))
        if paper_cell(paper, best) != paper_cell(paper, address):
            wrong.append((address, best))
    return wrong


def paper_cell(paper: dict, address: str) -> float:
    """A number of the paper by its address, such as ``table1.pat.nyuv2.miou``."""
    return _descend(paper, address.split("."))


def _descend(node, keys: Iterable[str]):
    for key in keys:
        node = node[int(key) if key.isdigit() else key]
    return node


def signed(score: float) -> str:
    """A difference in percentage points: ``+1.2``, ``−0.3`` (with a minus sign)."""
    text = f"{100 * score:+.1f}"
    return ("0.0" if text in ("+0.0", "-0.0") else text).replace("-", "−")


def _end(score: float) -> str:
    """An end of an interval: :func:`signed`, finer where only that shows on which side of 0."""
    text = f"{100 * score:+.2f}".replace("-", "−")
    return text if signed(score) == "0.0" and text[1:] != "0.00" else signed(score)


def spread(row: dict) -> str:
    """A row of :func:`summarize` in percent: ``37.1 ± 0.4``, ``37.1`` or ``not run``.

    The spaces do not break. How many seeds it is made of: :func:`seeds_note`.
    """
    if not row["n"]:
        return "not run"
    deviation = "" if math.isnan(row["std"]) else f"\u00a0±\u00a0{100 * row['std']:.1f}"
    return f"{100 * row['mean']:.1f}{deviation}"


def seeds_note(tables: Mapping[str, Iterable[dict]]) -> str:
    """Below a table: ``Seeds done, of those planned: CamVid 1 of 5 (PAT 2 of 5); NYUv2 3 of 3.``

    Args:
        tables: what they are of -> rows of :func:`summarize`. Those without a run do not count.
    """
    parts = []
    for title, rows in tables.items():
        methods = defaultdict(list)
        for row in rows:
            if row["n"]:
                methods[f"{row['n']} of {row['planned']}"].append(row["method"])
        # The most frequent number stands for all; the exceptions are named.
        (number, _), *others = sorted(methods.items(), key=lambda item: -len(item[1])) or [
            ("none", [])
        ]
        named = ", ".join(f"{listing(names)} {number}" for number, names in others)
        parts.append(f"{title} {number}{f' ({named})' if named else ''}")
    return f"Seeds done, of those planned: {'; '.join(parts)}."


def seed_count(runs: Iterable[Run], marks: str = "") -> str:
    """How many seeds the methods have, of those with any: ``one seed``, ``1 to 3 seeds``.

    Args:
        runs: of any places.
        marks: for a caption: how the single seeds are drawn, if there is more than one anywhere.
    """
    numbers = {row["n"] for row in summarize(runs) if row["n"]}
    if numbers <= {1}:
        return "one seed" if numbers else "no seed yet"
    low, high = min(numbers), max(numbers)
    return f"{f'{low} to ' if low < high else ''}{high} seeds{marks and f' ({marks})'}"


def listing(names: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
