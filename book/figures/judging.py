"""How methods are judged against each other, in words, tables and a figure.

The intervals are those of :mod:`patlib.study.simultaneous`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from patlib.plots import method_styles
from patlib.plots.panels import subplots
from patlib.study.runs import Run, by_method
from patlib.study.simultaneous import Contrast, MethodScores, score_methods
from patlib.study.wording import signed, signed_end

#: score -> up to which difference two methods are called equal (PROTOCOL.md)
MARGINS = {"miou": 0.01, "tail": 0.02, "head": 0.01, "pixel_accuracy": 0.01}
NAMES = {"miou": "mIoU", "tail": "IoU of the tail"}  # the primary scores


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
    return f"{said} ({signed_end(contrast.low)} to {signed_end(contrast.high)})"


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
