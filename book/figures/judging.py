"""How methods are judged against each other, in words, tables and a figure.

The intervals are those of :mod:`patlib.study.simultaneous`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

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
        unjudged: methods that are left out, too. One that fails on some seeds has another scatter
            than the rest, with which it must not be pooled.
        resamples: of the test part.

    Attributes:
        methods: those that were run.
        single: those of them with one run, which are shown and not judged.
        several: those with more.
        complete: whether all that are planned have several.
    """

    def __init__(self, runs: Iterable[Run], unjudged: Sequence[str] = (), resamples: int = 2000):
        planned = by_method(run for run in runs if run.method not in unjudged)
        self._runs = by_method(run for of in planned.values() for run in of if run.record)
        self.methods = list(self._runs)
        self.single = [method for method, of in self._runs.items() if len(of) == 1]
        self.several = [method for method, of in self._runs.items() if len(of) > 1]
        self.complete = bool(planned) and set(self.several) == planned.keys()
        self._resamples = resamples
        self._scores: dict[str, MethodScores | None] = {}

    def scores(self, metric: str) -> MethodScores | None:
        """The scores with their errors; None with fewer than two methods of several seeds."""
        if metric not in self._scores:
            self._scores[metric] = None
            if len(self.several) > 1:
                runs = [run for method in self.several for run in self._runs[method]]
                self._scores[metric] = score_methods(runs, metric, resamples=self._resamples)
        return self._scores[metric]

    def against(self, metric: str, reference: str = "CE") -> dict[str, Contrast]:
        """Each method minus the reference; where one of the two has one seed, NaN for the interval.

        The mean is then over the seeds that both have. Empty if the reference or all others were
        not run.
        """
        if reference not in self.methods:
            return {}
        scores = self.scores(metric)
        judged = {}
        if scores and reference in scores.methods:
            judged = {c.method: c for c in scores.against(reference)}
        found = {}
        for method in self.methods:
            if method in judged:
                found[method] = judged[method]
            elif method != reference and (pairs := self._pairs(metric, method, reference)):
                mean = float(np.mean([a - b for a, b in pairs]))
                wins = sum((a > b) + 0.5 * (a == b) for a, b in pairs)
                found[method] = Contrast(
                    method, reference, mean, math.nan, math.nan, wins, len(pairs)
                )
        return found

    def alone(self, metric: str, method: str = "PAT", reference: str = "CE") -> Contrast | None:
        """A method minus a reference, with the scatter between seeds of these two alone.

        The interval does not depend on which other methods were run, and is wide where seeds are
        few. None where one of the two has no two seeds.
        """
        if not {method, reference} <= {*self.several}:
            return None
        runs = [*self._runs[reference], *self._runs[method]]
        scores = score_methods(runs, metric, resamples=self._resamples)
        return scores.against(reference)[0] if scores.residual_dof else None

    def beside_best(self, metric: str, method: str = "PAT") -> Contrast | None:
        """A method minus the other one with the highest score, of those with several seeds.

        The interval is one of those of the method against all others, which hold together, so that
        it holds for the best of them as well. None where there is nothing to compare.
        """
        scores = self.scores(metric)
        if scores is None or method not in scores.methods:
            return None
        best = max(scores.against(method), key=lambda c: c.mean)
        return replace(
            best,
            method=method,
            reference=best.method,
            mean=-best.mean,
            low=-best.high,
            high=-best.low,
            wins=best.seeds - best.wins,
        )

    def _pairs(self, metric: str, method: str, reference: str) -> list[tuple[float, float]]:
        a, b = ({r.seed: r.score(metric) for r in self._runs[m]} for m in (method, reference))
        return [(a[seed], b[seed]) for seed in sorted(a.keys() & b.keys())]

    def may_be_best(self, metric: str) -> list[str]:
        """The methods that are not shown to be lower than another, of those with several seeds."""
        scores = self.scores(metric)
        return scores.may_be_best() if scores else []

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
        Line2D(
            [],
            [],
            label="interval contains 0; without a line: not judged",
            markerfacecolor="white",
            **mark,
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure
