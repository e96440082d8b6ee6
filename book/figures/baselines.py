"""Against the baselines: which losses differ from cross-entropy, which may be the best, where."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from patlib.metrics import class_groups
from patlib.plots import method_styles
from patlib.plots.panels import subplots
from patlib.study.runs import Run, by_method
from patlib.study.simultaneous import Contrast, MethodScores, score_methods
from patlib.study.wording import listing, signed

#: score -> up to which difference two methods are called equal (PROTOCOL.md)
MARGINS = {"miou": 0.01, "tail": 0.02, "head": 0.01, "pixel_accuracy": 0.01}
NAMES = {"miou": "mIoU", "tail": "IoU of the tail"}  # the primary scores
FLAT = 0.005  # the rise of validation mIoU in the last tenth of a run that counts as none


class Judged:
    """The methods of one benchmark, judged against each other.

    Args:
        runs: of one benchmark; methods without a record are left out.
        unjudged: methods that are not judged. One that fails on some seeds has another scatter than
            the rest, with which it must not be pooled.
        resamples: of the test part.

    Attributes:
        methods: those that are judged.
        seeds: the smallest number of runs of a method; with 1, nothing is judged.
    """

    def __init__(self, runs: Iterable[Run], unjudged: Sequence[str] = (), resamples: int = 2000):
        done = by_method(run for run in runs if run.record and run.method not in unjudged)
        self.methods = list(done)
        self.seeds = min(map(len, done.values()), default=0)
        self._runs = [run for members in done.values() for run in members]
        self._resamples = resamples
        self._scores: dict[str, MethodScores] = {}

    def scores(self, metric: str) -> MethodScores:
        """The scores with their errors, of two methods or more."""
        if metric not in self._scores:
            self._scores[metric] = score_methods(self._runs, metric, resamples=self._resamples)
        return self._scores[metric]

    def against(self, metric: str, reference: str = "CE") -> dict[str, Contrast]:
        """Each method minus the reference; of a single seed, with NaN for the interval.

        Empty if the reference or all others were not run.
        """
        if reference not in self.methods or len(self.methods) < 2:
            return {}
        scores = self.scores(metric)
        if scores.residual_dof:
            return {c.method: c for c in scores.against(reference)}
        mean = {method: np.mean(list(of.values())) for method, of in scores.scores.items()}
        return {
            m: Contrast(m, reference, float(mean[m] - mean[reference]), *[math.nan] * 3)
            for m in scores.methods
            if m != reference
        }

    def may_be_best(self, metric: str) -> list[str]:
        """The methods that are not shown to be lower than another; none with a single seed."""
        if len(self.methods) < 2 or not self.scores(metric).residual_dof:
            return []
        return self.scores(metric).may_be_best()

    def verdict(self, method: str, metric: str, reference: str = "CE") -> str | None:
        """Of a method against another: a word; None if one of them was not run."""
        contrast = self.against(metric, reference).get(method)
        return contrast and verdict(contrast, metric)


def verdict(contrast: Contrast, metric: str) -> str:
    """``"higher"``, ``"lower"``, ``"equal"``, ``"not distinguishable"``, or ``"not judged"``."""
    return "not judged" if math.isnan(contrast.low) else contrast.verdict(MARGINS[metric])


def text(contrast: Contrast, metric: str) -> str:
    """For a table, in points: ``lower: −2.5 (−3.8 to −1.2)``."""
    said = f"{verdict(contrast, metric)}: {signed(contrast.mean)}"
    if math.isnan(contrast.low):
        return said
    return f"{said} ({signed(contrast.low)} to {signed(contrast.high)})"


def left_out(panels: Mapping[str, Iterable[Run]], unjudged: Sequence[str]) -> str:
    """Which methods are shown and not judged: a sentence, or nothing."""
    ran = {run.method for runs in panels.values() for run in runs if run.record}
    names = [method for method in unjudged if method in ran]
    if not names:
        return ""
    return (
        f"{listing(names)} fails on some seeds, so that its scatter is another than that of the "
        "rest: it is shown below and not judged."
    )


def answer(judged: Mapping[str, Judged], metric: str, method: str = "PAT") -> str:
    """Whether a method scores higher than cross-entropy, benchmark by benchmark: one sentence."""
    words = defaultdict(list)
    for title, found in judged.items():
        if said := found.verdict(method, metric):
            words[said].append(f"{title} ({signed(found.against(metric)[method].mean)})")
    if not words:
        return f"{method} and cross-entropy are still to run"
    phrases = {
        "higher": "higher than that of cross-entropy on",
        "lower": "lower than that of cross-entropy on",
        "equal": f"equal to that of cross-entropy within {100 * MARGINS[metric]:.0f} points on",
        "not distinguishable": "not distinguishable from that of cross-entropy on",
        "not judged": "not judged, with one seed, on",
    }
    parts = [f"{phrase} {listing(words[w])}" for w, phrase in phrases.items() if w in words]
    return f"The {NAMES[metric]} of {method} is {'; '.join(parts)}"


def recommend(judged: Mapping[str, Judged], metric: str) -> str:
    """Which losses may be the best, on all benchmarks that have several seeds: one sentence."""
    kept = {title: best for title, f in judged.items() if (best := f.may_be_best(metric))}
    if not kept:
        return f"Which loss has the best {NAMES[metric]} is not decided yet"
    common = [m for m in next(iter(kept.values())) if all(m in some for some in kept.values())]
    where = listing(kept)
    if common:
        verb = "are" if len(common) > 1 else "is"
        return (
            f"In {NAMES[metric]}, {listing(common)} {verb} not shown to be lower than any other on "
            f"{where}"
        )
    each = "; ".join(f"on {title} {listing(some)}" for title, some in kept.items())
    return f"In {NAMES[metric]} no loss may be the best on all of {where}: {each}"


def plot_contrasts(judged: Mapping[str, Judged]) -> Figure | None:
    """Every method minus cross-entropy, in mIoU and in the tail, with simultaneous intervals.

    Filled: higher or lower; open: not distinguishable, equal, or (without a line) not judged. The
    grey band is the margin within which two methods count as equal.

    Returns:
        The figure, or None if there is nothing to compare.
    """
    judged = {title: found for title, found in judged.items() if found.against("miou")}
    if not judged:
        return None
    heights = [len(found.methods) - 1 for found in judged.values()]
    figure, axes = subplots(
        len(judged),
        len(NAMES),
        0.27 * sum(heights) + 0.6 * len(judged) + 0.9,
        height_ratios=[height + 0.5 for height in heights],
        sharey="row",
        sharex="col",
    )
    colors, _ = method_styles(m for found in judged.values() for m in found.methods)
    for row, (title, found) in zip(axes, judged.items(), strict=True):
        for axis, metric in zip(row, NAMES, strict=True):
            contrasts = list(found.against(metric).values())
            for y, c in enumerate(contrasts):
                color = colors[c.method]
                axis.hlines(y, 100 * c.low, 100 * c.high, color=color, linewidth=2)
                sure = verdict(c, metric) in ("higher", "lower")
                face = color if sure else "white"
                axis.plot(100 * c.mean, y, "o", markersize=7, color=color, markerfacecolor=face)
            axis.axvline(0, color="black", linewidth=0.8)
            margin = 100 * MARGINS[metric]
            axis.axvspan(-margin, margin, color="#e3e3e3", zorder=0)
            axis.grid(axis="x", alpha=0.3)
        row[0].set(yticks=range(len(contrasts)), yticklabels=[c.method for c in contrasts])
        row[0].set_ylim(len(contrasts) - 0.5, -0.6)
        row[0].set_title(title, loc="left", fontsize=11)
    for axis, metric in zip(axes[-1], NAMES, strict=True):
        axis.set_xlabel(f"{NAMES[metric]} minus that of CE (points)")
    mark = dict(marker="o", linestyle="", markersize=7, color="black")
    handles = [
        Line2D([], [], label="higher or lower", **mark),
        Line2D([], [], label="not told apart from CE", markerfacecolor="white", **mark),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def rises(runs: Iterable[Run]) -> dict[str, float]:
    """Method -> by how much its validation mIoU rises in the last tenth of the run.

    The mean of the last tenth of the epochs minus that of the tenth before, and over the seeds.
    """
    found = defaultdict(list)
    for run in runs:
        if run.record:
            curve = np.array(run.record.result["curves"]["validation_miou"], dtype=float)
            n = max(1, len(curve) // 10)
            found[run.method].append(curve[-n:].mean() - curve[-2 * n : -n].mean())
    return {method: float(np.mean(values)) for method, values in found.items()}


def not_flat(panels: Mapping[str, Iterable[Run]]) -> str:
    """Which curves still rise by the protocol's rule: a sentence."""
    rising, any_run = [], False
    for title, runs in panels.items():
        of_methods = rises(runs)
        any_run |= bool(of_methods)
        if names := [m for m, rise in of_methods.items() if rise > FLAT]:
            rising.append(f"{title}: {listing(names)}")
    if not any_run:
        return "Nothing was run yet."
    if not rising:
        return "No curve rises by more than half a point in the last tenth of its run."
    return (
        "These curves still rise by more than half a point in the last tenth of their runs: "
        f"{'; '.join(rising)}."
    )


def lengths(runs: Iterable[Run]) -> list[list[str]]:
    """CE and PAT at each length that both were run with: rows of a table."""
    by_length: dict = defaultdict(dict)
    for run in runs:
        if run.record:
            settings = run.planned.settings
            key = (run.benchmark, settings["epochs"])
            by_length[key].setdefault(settings["loss"], []).append(run)
    rows = []
    for (benchmark, epochs), found in sorted(by_length.items(), key=lambda item: item[0]):
        if {"ce", "pat"} <= found.keys():
            row = [f"{benchmark}, {epochs}"]
            for metric in NAMES:
                ce, pat = (np.mean([r.score(metric) for r in found[m]]) for m in ("ce", "pat"))
                row += [f"{100 * ce:.1f} → {100 * pat:.1f}", signed(pat - ce)]
            rows.append(row)
    return rows


def class_changes(runs: Iterable[Run], method: str = "PAT") -> pd.DataFrame:
    """IoU of each class: means over the seeds, the commonest class first.

    Returns:
        A row for each class: ``share`` of the training pixels, ``CE``, the method, ``change``, in
        [0, 1]. Empty if one of the two was not run.
    """
    done = by_method(run for run in runs if run.record)
    if not {"CE", method} <= done.keys():
        return pd.DataFrame()
    result = done["CE"][0].record.result
    counts = np.array(result["class_counts"], dtype=float)
    iou = {m: np.mean([run.score("iou") for run in done[m]], axis=0) for m in ("CE", method)}
    table = pd.DataFrame({"share": counts / counts.sum(), **iou}, index=result["class_names"])
    table["change"] = table[method] - table["CE"]
    return table.sort_values("share", ascending=False)


def gains_and_losses(runs: Iterable[Run], method: str = "PAT", least: float = 0.01) -> str:
    """Who gains and who loses by a point or more, the largest first: words."""
    table = class_changes(runs, method)
    if table.empty:
        return "not run"
    order = table["change"].sort_values()

    def named(changes: pd.Series) -> str:
        return (
            listing(f"{name} {signed(v)}" for name, v in changes.items())
            if len(changes)
            else "none"
        )

    return f"gain: {named(order[order >= least][::-1])}; lose: {named(order[order <= -least])}"


def tail_classes(panels: Mapping[str, Sequence[Run]]) -> dict:
    """The IoU of each class of the tail, the mean over the seeds: columns of a table."""
    columns = {}
    for title, runs in panels.items():
        done = by_method(run for run in runs if run.record)
        if not done:
            continue
        result = next(iter(done.values()))[0].record.result
        shares = 100 * np.array(result["class_counts"]) / sum(result["class_counts"])
        for c in class_groups(result["class_counts"])["tail"]:
            where = f"{title}, {result['class_names'][c]} ({shares[c]:.2g} %)"
            for method, members in done.items():
                iou = np.mean([100 * run.score("iou")[c] for run in members])
                columns.setdefault(method, {})[where] = f"{iou:.1f}"
    return columns


def calibration(path) -> list[list[str]]:
    """Rows of ``calibration.json``: data, seeds, and how often the intervals hold, in percent."""
    rows = []
    for data, by_seeds in json.loads(path.read_text()).items():
        for seeds, found in by_seeds.items():
            names = ("all_intervals_hold", "wrong_sign", "best_is_kept")
            rows.append([data, seeds, *(f"{100 * found[name]:.1f}" for name in names)])
    return rows
