"""Which part of PAT does what; scores over the temperature and over the exponent of the size."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import seaborn as sns

from figures.judging import NAMES, Judged, verdict
from patlib.plots.panels import subplots
from patlib.study.runs import Run, by_method, scores
from patlib.study.statistics import chance_range
from patlib.study.wording import listing, signed

#: the parts of PAT as the grid calls them, and in words
PARTS = {"β only": "β alone", "1/S, images": "the division by the size alone", "PAT": "both"}
COLORS = ("#0072b2", "#d55e00")
MARKERS = ("o", "s")


def seeds_words(runs: Sequence[Run], others: Sequence[Run]) -> str:
    """Which seeds the runs at several T have, where those of PAT on another page differ.

    Args:
        runs: at several T.
        others: those of PAT on the page *Against the baselines*.
    """
    here, there = (sorted({run.seed for run in of if run.record}) for of in (runs, others))
    if not here or not there or here == there:
        return ""
    return (
        f"The seeds here are {listing(map(str, here))}; on that page PAT has "
        f"{listing(map(str, there))}, so that its scores differ."
    )


def parts_words(judged: Judged, where: str) -> str:
    """What β, the division by the size, and both change beside cross-entropy: a sentence.

    Args:
        judged: cross-entropy and ``PARTS``, as far as they were run.
        where: the data set.
    """
    said = []
    for method, words in PARTS.items():
        found = {metric: judged.against(metric).get(method) for metric in NAMES}
        if all(found.values()):
            changes = (
                f"{name} by {signed(found[metric].mean)} ({verdict(found[metric], metric)})"
                for metric, name in {"miou": "mIoU", "tail": "the IoU of the tail"}.items()
            )
            said.append(f"{words} {'change' if words == 'both' else 'changes'} {listing(changes)}")
    if not said:
        return "The runs that tell are still to come."
    return f"Beside cross-entropy on {where}, in points: {'; '.join(said)}{_floor(judged)}."


def _floor(judged: Judged, least: float = 0.01) -> str:
    """The parts with which, as with cross-entropy, no rare class is found: a phrase, or none."""
    tails = judged.scores("tail")
    if tails is None or "CE" not in tails.methods:
        return ""
    mean = {m: sum(of.values()) / len(of) for m, of in tails.scores.items()}
    none = [words for m, words in PARTS.items() if max(mean["CE"], mean.get(m, 1.0)) < least]
    if not none:
        return ""
    return (
        f"; with cross-entropy and with {listing(none)} the tail is below {100 * least:.0f} %, so "
        "that these runs cannot show what they would do to rare classes"
    )


def score_range(runs: Sequence[Run]) -> tuple[int, float, float, float]:
    """How far the mean mIoU of methods of one benchmark ranges, and what chance alone would give.

    Means over different seeds would differ for that alone: only seeds that every method has count.

    Returns:
        The number of these seeds; the range of the means, the deviation of the residuals and the
        range by chance (:func:`patlib.study.statistics.chance_range`), in [0, 1]; NaN where the
        seeds are too few.
    """
    table = scores(runs).pivot(index="method", columns="seed", values="score")
    table = table.reindex(list(by_method(runs))).dropna(axis="columns")
    seeds = table.shape[1]
    span = float(np.ptp(table.mean(axis="columns"))) if seeds else math.nan
    return (seeds, span, *(chance_range(table) if seeds > 1 else (math.nan, math.nan)))


def range_words(runs: Sequence[Run], where: str) -> str:
    """The range of the mean mIoU of one benchmark, in points: a phrase."""
    seeds, span, _, chance = score_range(runs)
    if not seeds:
        return f"no range {where}, where no seed was run at every T"
    if seeds == 1:
        return f"{100 * span:.1f} points {where}, with one seed"
    by_chance = f"by chance alone about {100 * chance:.1f}"
    return f"{100 * span:.1f} points {where}, with {seeds} seeds ({by_chance})"


def equal_cells(tables: Mapping[str, Mapping]) -> tuple[list[tuple], int]:
    """Cells of the paper that are the same, as printed, with two networks.

    Args:
        tables: network -> loss or temperature -> data set -> score -> number.

    Returns:
        Of each pair of equal cells the loss or temperature, data set, score and number; and how
        many pairs there are. A cell that one of two networks lacks makes no pair.
    """
    cells = [
        {
            (row, name, metric): number
            for row, by_name in table.items()
            for name, values in by_name.items()
            for metric, number in values.items()
        }
        for table in tables.values()
    ]
    pairs = [
        (*key, number, other[key])
        for one, other in combinations(cells, 2)
        for key, number in one.items()
        if key in other
    ]
    return [pair[:-1] for pair in pairs if pair[-2] == pair[-1]], len(pairs)


def plot_scores_over(
    table: pd.DataFrame,
    x: str,
    panels: str,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    log: bool = False,
):
    """Scores over a setting: every seed a small mark, lines through the means.

    Args:
        table: one row for each score, with columns ``score`` (in percent), ``line`` (label of its
            line) and those named by ``x`` and ``panels``. Lines with fewer than two values of x
            are left out.
        x: column of the setting, and label of the axis.
        panels: column of the titles of the panels.
        levels: label of a horizontal line -> title of a panel -> value in percent.
        log: True draws x on a log scale.

    Returns:
        The figure, or None if no line is left.
    """
    if len(table):
        table = table[table.groupby([panels, "line"])[x].transform("nunique") > 1]
    if not len(table):
        return None
    titles, lines = table[panels].unique(), table["line"].unique()
    figure, axes = subplots(1, len(titles), 3.4)
    style = dict(x=x, y="score", hue="line", style="line", hue_order=lines, style_order=lines)
    style |= dict(palette=list(COLORS[: len(lines)]), markers=list(MARKERS[: len(lines)]))
    for axis, title in zip(axes[0], titles, strict=True):
        panel = table[table[panels] == title]
        several = panel[panel.groupby(["line", x])["score"].transform("size") > 1]
        sns.lineplot(panel, **style, errorbar=None, markersize=8, ax=axis)
        if len(several):
            sns.scatterplot(several, **style, s=22, alpha=0.65, legend=False, ax=axis)
        for (label, level), dashes in zip((levels or {}).items(), ("--", ":"), strict=False):
            axis.axhline(level[title], color="black", linestyle=dashes, linewidth=1, label=label)
        if log:
            axis.set_xscale("log")
            ticks = sorted(panel[x].unique())
            axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axis.minorticks_off()
        axis.set(title=title, ylabel="score (%)")
        axis.grid(alpha=0.3)
        handles, labels = axis.get_legend_handles_labels()
        axis.legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def tidy(runs: Sequence[Run], metrics: Mapping[str, str], **settings) -> pd.DataFrame:
    """Scores in percent of the runs with a record, a row each.

    Args:
        runs: of any methods.
        metrics: score -> its title, column ``metric``.
        **settings: name of a column -> method -> its value; methods without one are left out.
    """
    tables = [scores(runs, metric).assign(metric=title) for metric, title in metrics.items()]
    table = pd.concat(tables, ignore_index=True)
    for name, values in settings.items():
        table[name] = table["method"].map(values)
    return table.assign(score=100 * table["score"]).dropna(subset=["score", *settings])
