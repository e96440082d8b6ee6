"""What each point changes in which the released code differs from the paper's text.

An effect is a sum of mean scores with signs, such as that of released BMS minus that of BMS. Its
interval is that of the protocol: the deviation over seeds is pooled over the methods of the
reference grid, so that a run of a single seed has an interval, too.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from figures import ROOT
from patlib.data import DATASETS
from patlib.data.dataset import Sample, cut_80_10_10
from patlib.data.nyuv2 import NUM_FRAMES
from patlib.metrics import class_groups
from patlib.plots.panels import subplots
from patlib.study.paper import paper_number
from patlib.study.runs import Run
from patlib.study.wording import listing, signed, signed_end

RESIZED = ROOT / "study" / "records" / "resized_labels.json"
METRICS = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "tail": "tail"}
MEASURES = {
    "miou": "all classes, one matrix",
    "all_batches": "all classes, mean over batches",
    "three": "classes 0 to 2, one matrix",
    "released": "classes 0 to 2, mean over batches",
}
COLORS = {"camvid": "#005f9e", "nyuv2": "#d95f02", "oxford_pet": "#444444"}
MARKS = {"camvid": "o", "nyuv2": "D", "oxford_pet": "s"}
# The paper's balanced softmax keeps so much of the mIoU of cross-entropy, at most, and what the
# loss of Ren et al. must keep (PROTOCOL.md).
COLLAPSED, SOUND = 0.68, 0.85
LOST = 0.005  # IoU of a class that is hardly ever found

POINTS = {
    "measure": "mIoU of 3 classes, by batch",
    "bms": "BMS exponentiated twice",
    "blv": "BLV's sign",
    "counts": "classes counted by batch",
    "relu": "ReLU on the logits",
    "inap": "PAT without 1/S",
    "void": "void as a class",
    "epoch": "best epoch (validation)",
    "split": "random split",
}
PAIR = "PAT − CE"


@dataclass(frozen=True)
class Contrast:
    """Mean scores of the methods ``plus`` minus those of the methods ``minus``.

    Attributes:
        point: of ``POINTS``.
        of: which score changes.
        plus, minus: labels of methods.
    """

    point: str
    of: str
    plus: tuple[str, ...]
    minus: tuple[str, ...]


def _pair(point: str, name: str) -> list[Contrast]:
    """A point that concerns all losses: CE, PAT, and their difference."""
    ce, pat = f"CE, {name}", f"PAT, {name}"
    return [
        Contrast(point, "CE", (ce,), ("CE",)),
        Contrast(point, "PAT", (pat,), ("PAT",)),
        Contrast(point, PAIR, (pat, "CE"), ("PAT", ce)),
    ]


CONTRASTS = [
    Contrast("bms", "BMS", ("BMS, released",), ("BMS",)),
    Contrast("bms", "BMS, ReLU", ("BMS, released, ReLU",), ("BMS",)),
    Contrast("blv", "BLV", ("BLV, released",), ("BLV",)),
    *(Contrast("counts", m, (f"{m}, released",), (m,)) for m in ("CB", "CBFocal", "LDAM")),
    *_pair("relu", "ReLU"),
    Contrast("inap", "PAT: inap", ("inap",), ("PAT",)),
    Contrast("inap", "PAT: ina", ("ina",), ("PAT",)),
    *_pair("void", "void"),
    *_pair("split", "random split"),
]
REFERENCES = ("CE", "PAT", "BMS", "BLV", "CB", "CBFocal", "LDAM")
#: baselines of the paper -> the contrast that concerns them
BASELINES = {"BMS": "bms", "BLV": "blv", "CB": "cb", "CBFocal": "cb_focal", "LDAM": "ldam"}


@dataclass(frozen=True)
class Effect:
    """By how much a point changes a score of a data set, in [-1, 1].

    Attributes:
        by_seed: seed -> effect with the run of that seed; references are means over their seeds.
        half: half-width of the 95 % interval over seeds; NaN if it is not known.
    """

    point: str
    of: str
    dataset: str
    metric: str
    mean: float
    half: float
    by_seed: Mapping[int, float]

    @property
    def seen(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.mean) > self.half

    @property
    def text(self) -> str:
        """In points: ``−1.2 (−2.9 to +0.5)``."""
        if math.isnan(self.half):
            return signed(self.mean)
        ends = self.mean - self.half, self.mean + self.half
        return f"{signed(self.mean)} ({signed_end(ends[0])} to {signed_end(ends[1])})"


def run_scores(runs: Iterable[Run]) -> pd.DataFrame:
    """mIoU, pixel accuracy and tail of every run with a record.

    All over the classes of the reference, and the tail of the reference: with void as a class, the
    pixels of void are left out again, and being labelled void is an error.

    Args:
        runs: of both grids; a data set without a reference is left out.

    Returns:
        Columns ``dataset``, ``method``, ``seed`` and those of ``METRICS``, in [0, 1].
    """
    done = [run for run in runs if run.record]
    counts = {}  # of the classes of the reference, by data set
    for run in done:
        if run.method in REFERENCES:
            counts.setdefault(run.benchmark.dataset, run.record.result["class_counts"])
    rows = []
    for run in done:
        dataset, test = run.benchmark.dataset, run.record.result["test"]
        if dataset not in counts:
            continue
        iou, accuracy = np.array(test["iou"], float), test["pixel_accuracy"]
        if run.benchmark.void == "class":
            number = len(counts[dataset])
            confusion = np.array(test["confusion"], float)[:number]
            tp, true = confusion.diagonal(), confusion.sum(1)
            predicted = confusion.sum(0)[:number]
            iou, accuracy = tp / (true + predicted - tp), tp.sum() / true.sum()
        tail = class_groups(counts[dataset])["tail"]
        scores = {
            "miou": np.nanmean(iou),
            "pixel_accuracy": accuracy,
            "tail": np.nanmean(iou[tail]),
        }
        rows.append({"dataset": dataset, "method": run.method, "seed": run.seed, **scores})
    return pd.DataFrame(rows, columns=["dataset", "method", "seed", *METRICS])


def pooled(table: pd.DataFrame, dataset: str, metric: str) -> tuple[float, int]:
    """Standard deviation over seeds within the reference methods, and its degrees of freedom."""
    chosen = table[(table.dataset == dataset) & table.method.isin(REFERENCES)]
    squares, dof = 0.0, 0
    for _, scores in chosen.groupby("method")[metric]:
        squares += float(((scores - scores.mean()) ** 2).sum())
        dof += len(scores) - 1
    return (math.sqrt(squares / dof) if dof else math.nan), dof


def effect(table: pd.DataFrame, contrast: Contrast, dataset: str, metric: str) -> Effect | None:
    """The effect of a contrast; None while a method of it has no run."""
    of_data = table[table.dataset == dataset]
    signs = {**dict.fromkeys(contrast.plus, 1), **dict.fromkeys(contrast.minus, -1)}
    scores = {m: of_data[of_data.method == m].set_index("seed")[metric] for m in signs}
    if any(values.empty for values in scores.values()):
        return None
    mean = sum(sign * scores[m].mean() for m, sign in signs.items())
    deviation, dof = pooled(table, dataset, metric)
    of_means = math.sqrt(sum(1 / len(values) for values in scores.values()))
    half = stats.t.ppf(0.975, dof) * deviation * of_means if dof else math.nan
    changed = [m for m in signs if m not in REFERENCES]
    seeds = sorted(set.intersection(*(set(scores[m].index) for m in changed)))
    by_seed = {
        seed: float(
            sum(
                sign * (scores[m][seed] if m in changed else scores[m].mean())
                for m, sign in signs.items()
            )
        )
        for seed in seeds
    }
    return Effect(contrast.point, contrast.of, dataset, metric, float(mean), float(half), by_seed)


def effects(table: pd.DataFrame) -> list[Effect]:
    """The effects of all contrasts on all data sets and scores that have runs."""
    found = [
        effect(table, contrast, dataset, metric)
        for contrast in CONTRASTS
        for dataset in ("camvid", "nyuv2")
        for metric in METRICS
    ]
    return [one for one in found if one is not None]


def measures(counts: np.ndarray, batch: int) -> dict[str, float]:
    """mIoU by the four measures between the usual and the released one, of the same predictions.

    Args:
        counts: true positives, true and predicted pixels of each class in each test image,
            (N, 3, L), of the valid pixels.
        batch: images in a batch.

    Returns:
        By the keys of ``MEASURES``. Over batches, classes absent from a batch's truth are left out.
    """

    def iou(sums: np.ndarray) -> np.ndarray:
        tp, true, predicted = sums.astype(float)
        with np.errstate(invalid="ignore"):
            return tp / (true + predicted - tp)

    def over_batches(number: int) -> float:
        found = []
        for start in range(0, len(counts), batch):
            sums = counts[start : start + batch].sum(0)[:, :number]
            if (present := sums[1] > 0).any():
                found.append(iou(sums)[present].mean())
        return float(np.mean(found))

    whole, number = iou(counts.sum(0)), counts.shape[2]
    return {
        "miou": float(np.nanmean(whole)),
        "all_batches": over_batches(number),
        "three": float(np.nanmean(whole[:3])),
        "released": over_batches(min(3, number)),
    }


def paired(point: str, dataset: str, values: Mapping[str, Mapping[int, float]]) -> list[Effect]:
    """Effects that each run has by itself, for CE, PAT and PAT minus CE, by Student's t.

    Args:
        values: ``"CE"`` and ``"PAT"`` -> seed -> change of the score of that run.
    """
    ce, pat = values.get("CE", {}), values.get("PAT", {})
    both = {seed: pat[seed] - ce[seed] for seed in ce if seed in pat}
    found = []
    for of, by_seed in (("CE", ce), ("PAT", pat), (PAIR, both)):
        if by_seed:
            changes = list(by_seed.values())
            n = len(changes)
            half = math.nan
            if n > 1:
                half = stats.t.ppf(0.975, n - 1) * np.std(changes, ddof=1) / math.sqrt(n)
            mean = float(np.mean(changes))
            found.append(Effect(point, of, dataset, "miou", mean, float(half), by_seed))
    return found


def same_runs(runs: Iterable[Run]) -> tuple[list[Effect], dict[str, pd.DataFrame]]:
    """The points that are in the records of CE and PAT: the measure, and the best epoch.

    Returns:
        The effects; and, by data set, the mean of each measure: rows ``CE``, ``PAT``.
    """
    measured, changes = {}, {}
    for run in runs:
        if run.record and run.method in ("CE", "PAT"):
            dataset = run.benchmark.dataset
            counts = run.images(["counts"])["counts"]
            found = measures(counts, run.planned.settings["batch_size"])
            measured.setdefault(dataset, []).append({"method": run.method, **found})
            curve = run.record.result["curves"]["validation_miou"]
            for point, change in (
                ("measure", found["released"] - found["miou"]),
                ("epoch", max(curve) - curve[-1]),
            ):
                by_method = changes.setdefault((point, dataset), {})
                by_method.setdefault(run.method, {})[run.seed] = change
    found = [one for (point, dataset), v in changes.items() for one in paired(point, dataset, v)]
    means = {d: pd.DataFrame(rows).groupby("method").mean() for d, rows in measured.items()}
    return found, means


def find(found: Iterable[Effect], point: str, of: str, dataset: str, metric: str = "miou"):
    """That effect, or None."""
    wanted = (point, of, dataset, metric)
    return next((e for e in found if (e.point, e.of, e.dataset, e.metric) == wanted), None)


def effect_rows(found: Sequence[Effect], point: str) -> list[list[str]]:
    """Rows of a table: data set, whose score, and its change in each of ``METRICS``."""
    keys = dict.fromkeys((e.dataset, e.of) for e in found if e.point == point)
    rows = []
    for dataset, of in sorted(keys, key=lambda key: key[0]):
        cells = [find(found, point, of, dataset, metric) for metric in METRICS]
        texts = [cell.text if cell else "" for cell in cells]
        n = len(cells[0].by_seed)
        rows.append([f"{DATASETS[dataset].label}, {of} ({n} seed{'s' * (n > 1)})", *texts])
    return rows


def shares(found: Sequence[Effect], paper: Mapping) -> list[tuple[str, str, Effect, float, float]]:
    """What the points change in PAT's lead on NYUv2, beside the lead that the paper prints.

    Returns:
        (title of the point, lead, effect, points that the paper prints, share of them in percent),
        the effect being that on the lead.
    """

    def printed(loss: str) -> float:
        pat, other = (paper_number(paper, f"table1.{m}.nyuv2.miou") for m in ("pat", loss))
        return pat - other

    rows = []
    for one in found:
        if one.dataset != "nyuv2" or one.metric != "miou":
            continue
        if one.of == PAIR or one.point == "inap":
            # inap takes the place of PAT: what it changes, it changes in the lead.
            lead, gain = one, printed("ce")
            title = POINTS[one.point] + (f" ({one.of[5:]})" if one.point == "inap" else "")
            rows.append((title, PAIR, lead, gain, 100 * lead.mean / (gain / 100)))
        elif one.of in BASELINES and one.point in ("bms", "blv", "counts"):
            turned = {seed: -value for seed, value in one.by_seed.items()}
            lead = Effect(one.point, one.of, "nyuv2", "miou", -one.mean, one.half, turned)
            gain = printed(BASELINES[one.of])
            rows.append(
                (POINTS[one.point], f"PAT − {one.of}", lead, gain, 100 * lead.mean / (gain / 100))
            )
    return sorted(rows, key=lambda row: list(POINTS.values()).index(row[0].split(" (in")[0]))


def share_text(lead: Effect, printed: float) -> str:
    """How much of the printed lead (in points) an effect is, in percent.

    Where its interval holds 0, no share is shown: ``not shown (−15 to 137 %)``.
    """
    ends = (lead.mean - lead.half, lead.mean, lead.mean + lead.half)
    low, mean, high = (f"{10_000 * value / printed:.0f}".replace("-", "−") for value in ends)
    if math.isnan(lead.half):
        return f"{mean} %"
    return f"{mean} % ({low} to {high})" if lead.seen else f"not shown ({low} to {high} %)"


def kept(table: pd.DataFrame, method: str) -> dict[str, float]:
    """Data set -> mean mIoU of a method over that of CE."""
    means = table.groupby(["dataset", "method"])["miou"].mean()
    return {
        dataset: float(means[dataset, method] / means[dataset, "CE"])
        for dataset in COLORS
        if (dataset, method) in means.index and (dataset, "CE") in means.index
    }


def bms_words(table: pd.DataFrame) -> str:
    """Whether the collapsed row of BMS appears with the released loss and vanishes without."""
    released = kept(table, "BMS, released")
    real = {dataset: share for dataset, share in kept(table, "BMS").items() if dataset in released}
    if not released or not real:
        return "Runs with the balanced softmax of the released code are still to come."
    names = [DATASETS[dataset].label for dataset in released]
    runs = table.groupby(["dataset", "method"])["seed"].nunique()

    def seeds(method: str) -> str:
        numbers = [int(runs[dataset, method]) for dataset in released]
        if len(set(numbers)) < len(numbers):
            return f"{numbers[0]} seed{'s' if numbers[0] > 1 else ''} each"
        return f"{listing(map(str, numbers))} seed{'s' if max(numbers) > 1 else ''}"

    def texts(values: Mapping[str, float]) -> str:
        percent = [f"{100 * v:.0f}" if v >= 0.095 else f"{100 * v:.1f}" for v in values.values()]
        return f"{listing(percent)} %"

    appears = [share <= COLLAPSED for share in released.values()]
    vanishes = [share >= SOUND for share in real.values()]
    if all(appears) and all(vanishes):
        verdict = "it collapses as released and does not as published"
    elif not any(appears):
        verdict = "it does not collapse as released"
    else:
        verdict = "it collapses in part"
    both = "" if len(released) > 1 else " (the other data set is still to be run)"
    return (
        f"Exponentiated twice, balanced softmax keeps {texts(released)} of the mIoU of "
        f"cross-entropy on {listing(names)} ({seeds('BMS, released')}), and the loss of Ren et al. "
        f"{texts(real)} ({seeds('BMS')}): {verdict}{both}"
    ).removesuffix(".") + "."


def gain_words(rows: Sequence[tuple]) -> str:
    """What the points change in PAT minus CE, beside the gain that the paper prints."""
    on_pair = [row for row in rows if row[1] == PAIR]
    if not on_pair:
        return "No run that concerns the gain of PAT is there yet."
    gain = on_pair[0][3]
    up = [row for row in on_pair if row[2].seen and row[2].mean > 0]
    down = [row for row in on_pair if row[2].seen and row[2].mean < 0]
    others = len(on_pair) - len(up) - len(down)

    def named(chosen: Sequence[tuple]) -> str:
        ordered = sorted(chosen, key=lambda row: -abs(row[2].mean))
        return listing([f"{title} ({signed(e.mean)})" for title, _, e, *_ in ordered])

    parts = [f"it is raised by {named(up)}"] if up else []
    parts += [f"{'' if up else 'it is '}lowered by {named(down)}"] if down else []
    said = [listing(parts)] if parts else []
    if others:
        number, verb = (others, "is" if others == 1 else "are") if parts else ("none", "is")
        said.append(
            f"{number} of the {len(on_pair)} differences that were run {verb}"
            f"{' not' if parts else ''} shown to change that lead"
        )
        # The interval is wide enough for the printed gain to be this point's doing alone.
        whole = sum(abs(e.mean - gain / 100) <= e.half for _, _, e, *_ in on_pair if not e.seen)
        said.append(
            f"for {whole} of them the interval contains 0 and the whole {gain:.1f}: they could "
            "explain nothing or all of it"
            if whole
            else f"no interval of theirs holds the whole {gain:.1f}"
        )
    return (
        f"The paper's PAT is {gain:.1f} points of mIoU above its CE on NYUv2: here "
        f"{'; '.join(said)}."
    )


def still_missing(runs: Iterable[Run]) -> str:
    """How many runs have a record, and what has none of any seed."""
    runs = list(runs)
    done = {(run.benchmark.dataset, run.method) for run in runs if run.record}
    missing: dict[str, dict[str, None]] = {}
    for run in runs:
        if (run.benchmark.dataset, run.method) not in done:
            missing.setdefault(run.benchmark.dataset, {})[run.method] = None
    number = sum(run.record is not None for run in runs)
    parts = [
        f"on {DATASETS[dataset].label} {'; '.join(methods)}" for dataset, methods in missing.items()
    ]
    without = f" Without any run so far: {'. And '.join(parts)}." if parts else ""
    return f"{number} of the {len(runs)} runs are done.{without}"


def moved_words(runs: Iterable[Run]) -> str:
    """What the released BMS reaches where its logits are shifted, as validation chooses."""
    reached: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if run.record and run.method == "BMS, released":
            chosen = run.record.result["shifted"]["tau"]
            pair = (chosen["prior_shift"]["tau"], chosen["test"]["miou"])
            reached.setdefault(DATASETS[run.benchmark.dataset].label, []).append(pair)
    if not reached:
        return ""
    found = []
    for label, pairs in reached.items():
        tau, miou = np.mean(pairs, axis=0)
        found.append(f"{100 * miou:.1f} % on {label} (τ = {tau:g})".replace("-", "−"))
    return (
        "With the shift of the logits by τ log π that validation chooses, the same networks "
        f"reach {listing(found)}."
    )


def lost_words(text: Iterable[Run], code: Iterable[Run]) -> str:
    """Classes that rectified logits lose: IoU below ``LOST`` in every run, without them in none."""
    found = []
    for method in ("CE", "PAT"):
        ious: dict[tuple[str, bool], list] = {}
        names = {}
        for run in (*text, *code):
            rectified = run.method == f"{method}, ReLU"
            if run.record and (rectified or run.method == method):
                dataset = run.benchmark.dataset
                names[dataset] = run.record.result["class_names"]
                iou = np.array(run.record.result["test"]["iou"], float)
                ious.setdefault((dataset, rectified), []).append(iou)
        for dataset, classes in names.items():
            with_relu, without = (ious.get((dataset, rectified)) for rectified in (True, False))
            if with_relu and without:
                lost = (np.max(with_relu, 0) < LOST) & (np.min(without, 0) >= LOST)
                words = listing([classes[c] for c in lost.nonzero()[0]]) if lost.any() else "none"
                found.append(f"{method} on {DATASETS[dataset].label}: {words}")
    if not found:
        return ""
    return (
        f"Classes of an IoU below {100 * LOST:g} % in every run with ReLU, and in none without: "
        f"{'; '.join(found)}."
    )


def neighbours_in_training() -> float:
    """Share of NYUv2's test frames whose frame before or after is trained on, in a random split."""
    frames = [Sample(f"{frame:04d}", None, None) for frame in range(1, NUM_FRAMES + 1)]
    parts = {split: {int(s.id) for s in samples} for split, samples in cut_80_10_10(frames).items()}
    beside = [{frame - 1, frame + 1} & parts["train"] for frame in parts["test"]]
    return sum(map(bool, beside)) / len(beside)


def resized_rows(path=RESIZED) -> list[list[str]]:
    """Of masks resized bilinearly, in percent.

    Returns:
        Data set and size; pixels with another label than by nearest neighbour, with that of no
        class under the filter, with another label by majority; mIoU of the bilinear mask.
    """
    rows = []
    for dataset, entries in json.loads(path.read_text())["datasets"].items():
        for entry in entries:
            height, width = entry["image_size"]
            bilinear, majority = entry["bilinear"], entry["majority"]
            cells = (bilinear["changed"], entry["invented"], majority["changed"], bilinear["miou"])
            name = f"{DATASETS[dataset].label}, {height}x{width}"
            rows.append([name, *(f"{100 * cell:.1f}" for cell in cells)])
    return rows


def verdicts(table: pd.DataFrame, found: Sequence[Effect], resized: Sequence) -> list[list[str]]:
    """What the protocol expects of each point, what was found, and whether it is so."""

    def all_of(point: str, whose: Sequence[str], metric: str = "miou") -> list[Effect]:
        return [e for e in found if e.point == point and e.of in whose and e.metric == metric]

    def within(effects_: Sequence[Effect], limit: float) -> bool:
        return all(abs(e.mean) < limit for e in effects_)

    def texts(effects_: Sequence[Effect]) -> str:
        return "; ".join(f"{DATASETS[e.dataset].label}, {e.of} {signed(e.mean)}" for e in effects_)

    shares_kept = {
        f"{DATASETS[d].label}{end}": share
        for method, end in (("BMS, released", ""), ("BMS, released, ReLU", ", ReLU"))
        for d, share in kept(table, method).items()
    }
    means = table.groupby(["dataset", "method"])[["miou", "tail"]].mean()
    like_ce = {
        d: means.loc[d, "inap"] - means.loc[d, "CE"]
        for d in ("camvid", "nyuv2")
        if {(d, "inap"), (d, "CE")} <= set(means.index)
    }
    counts, ldam = all_of("counts", ["CB"]), all_of("counts", ["LDAM"])
    relu, split = all_of("relu", ["CE", "PAT"]), all_of("split", ["CE", "PAT"])
    void, epoch = all_of("void", ["CE", "PAT"]), all_of("epoch", ["CE", "PAT"])
    small = {}  # the first size of each data set is the small one
    for name, changed, *_ in resized:
        small.setdefault(name.split(",")[0], float(changed))
    rows = [
        (
            "BMS exponentiated twice keeps at most 68 % of the mIoU of CE",
            "; ".join(f"{name} {100 * share:.1f} %" for name, share in shares_kept.items()),
            all(share <= COLLAPSED for share in shares_kept.values()),
        ),
        (
            "BLV: less than 1 point",
            texts(all_of("blv", ["BLV"])),
            within(all_of("blv", ["BLV"]), 0.01),
        ),
        ("CB: less than 2 points", texts(counts), within(counts, 0.02)),
        (
            "LDAM changes more than CB",
            texts([*ldam, *counts]) if ldam and counts else "",
            all(abs(a.mean) > abs(b.mean) for a in ldam for b in counts if a.dataset == b.dataset),
        ),
        ("ReLU: CE and PAT by less than 2 points", texts(relu), within(relu, 0.02)),
        (
            "ReLU: PAT − CE by less than 1.5",
            texts(all_of("relu", [PAIR])),
            within(all_of("relu", [PAIR]), 0.015),
        ),
        (
            "inap: within 1 point of the mIoU and of the tail of CE",
            "; ".join(
                f"{DATASETS[d].label} {signed(v['miou'])} and {signed(v['tail'])}"
                for d, v in like_ce.items()
            ),
            bool((abs(pd.DataFrame(like_ce)) < 0.01).all(axis=None)),
        ),
        (
            "bilinear labels: 1 to 5 % of the pixels of the small images",
            "; ".join(f"{name} {value:.1f} %" for name, value in small.items()),
            all(1 <= value <= 5 for value in small.values()),
        ),
        ("void: less than 1.5 points", texts(void), within(void, 0.015)),
        (
            "void: PAT − CE by less than 1.5",
            texts(all_of("void", [PAIR])),
            within(all_of("void", [PAIR]), 0.015),
        ),
        (
            "best epoch: 0 to 1.5 points above the last",
            texts(epoch),
            all(0 <= e.mean <= 0.015 for e in epoch),
        ),
        (
            "random split: at least 3 points more",
            texts(split),
            all(e.mean >= 0.03 for e in split),
        ),
        (
            "random split: PAT − CE by less than 1.5",
            texts(all_of("split", [PAIR])),
            within(all_of("split", [PAIR]), 0.015),
        ),
    ]
    return [
        [says, given, "as expected" if holds else "not as expected"]
        if given
        else [says, "", "still to run"]
        for says, given, holds in rows
    ]


def plot_effects(found: Sequence[Effect]) -> Figure | None:
    """mIoU on the left, tail on the right: a row for each point and method, its seeds as dots."""
    shown = [e for e in found if e.of != PAIR and e.metric in ("miou", "tail")]
    if not shown:
        return None
    keys = list(dict.fromkeys((e.point, e.of) for e in shown))
    keys.sort(key=lambda key: list(POINTS).index(key[0]))
    figure, axes = subplots(1, 2, 1.3 + 0.36 * len(keys), sharey=True)
    datasets = [d for d in COLORS if any(e.dataset == d for e in shown)]
    for axis, metric in zip(axes[0], ("miou", "tail"), strict=True):
        for one in shown:
            if one.metric != metric:
                continue
            shift = 0.24 * (datasets.index(one.dataset) - (len(datasets) - 1) / 2)
            y, color = keys.index((one.point, one.of)) + shift, COLORS[one.dataset]
            if not math.isnan(one.half):
                axis.errorbar(
                    100 * one.mean, y, xerr=100 * one.half, color=color, linewidth=1.5, capsize=2
                )
            dots = 100 * np.array(list(one.by_seed.values()))
            axis.plot(dots, [y] * len(dots), "o", color=color, markersize=3, alpha=0.6)
            axis.plot(100 * one.mean, y, MARKS[one.dataset], color=color, markersize=6)
        axis.axvline(0, color="black", linestyle="--", linewidth=1)
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlabel(f"change of {'mIoU' if metric == 'miou' else 'tail IoU'} (points)")
    axes[0, 0].set_yticks(
        range(len(keys)), [f"{POINTS[point]}: {of.removeprefix('PAT: ')}" for point, of in keys]
    )
    axes[0, 0].invert_yaxis()
    handles = [
        Line2D([], [], color=COLORS[d], marker=MARKS[d], label=DATASETS[d].label) for d in datasets
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure
