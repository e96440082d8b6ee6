"""Candidates for a better PAT, judged and screened by the rules of ``study/PROTOCOL.md``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.features_or_prior import at_own_shifts, shift_text
from patlib.plots import method_styles
from patlib.plots.panels import subplots
from patlib.study.runs import Run, by_method
from patlib.study.shifts import best_shift, shift_curve
from patlib.study.simultaneous import Contrast
from patlib.study.wording import listing, signed, signed_end

CANDIDATES = ("PAT", "1/√S", "PAT with presence")  # methods of the grid of setting B
ALLOWED = 0.01  # by how much the pixel accuracy may be below that of CE
WINS, IN_MEAN, FAILS = "wins", "wins in the mean", "does not win"


@dataclass(frozen=True)
class Judgement:
    """A candidate on one benchmark, all methods at the shift that validation chooses for them.

    Attributes:
        method: its label.
        miou: against CE.
        tail: against the baseline with the highest tail.
        pixel_accuracy: mean difference to CE, in [-1, 1].
    """

    method: str
    miou: Contrast
    tail: Contrast
    pixel_accuracy: float

    @property
    def word(self) -> str:
        """``WINS``, ``IN_MEAN`` or ``FAILS``."""
        if self.pixel_accuracy < -ALLOWED or min(self.miou.mean, self.tail.mean) <= 0:
            return FAILS
        return WINS if min(self.miou.low, self.tail.low) > 0 else IN_MEAN


def judge(runs: Sequence[Run], resamples: int = 2000) -> list[Judgement]:
    """The candidates of one benchmark; none unless every method has two seeds or more.

    Args:
        runs: of one benchmark; methods without a record are left out.
        resamples: of the test part.
    """
    done = by_method(run for run in runs if run.record)
    if not set(CANDIDATES) & done.keys() or "CE" not in done:
        return []
    if min(map(len, done.values())) < 2:
        return []
    every = [run for members in done.values() for run in members]
    scores = {
        metric: at_own_shifts(every, metric, resamples)
        for metric in ("miou", "tail", "pixel_accuracy")
    }
    tails = {c.method: c.mean for c in scores["tail"].against("CE")} | {"CE": 0.0}
    best = max((m for m in tails if m not in CANDIDATES), key=tails.get)
    found = {
        "miou": {c.method: c for c in scores["miou"].against("CE")},
        "tail": {c.method: c for c in scores["tail"].against(best)},
        "pixel_accuracy": {c.method: c for c in scores["pixel_accuracy"].against("CE")},
    }
    return [
        Judgement(m, found["miou"][m], found["tail"][m], found["pixel_accuracy"][m].mean)
        for m in CANDIDATES
        if m in done
    ]


def answer(judged: Mapping[str, Sequence[Judgement]]) -> str:
    """Whether a candidate wins, and why not, benchmark by benchmark: sentences.

    Args:
        judged: title -> :func:`judge`.
    """
    judged = {title: found for title, found in judged.items() if found}
    if not judged:
        return "Not decided yet: on no data set has every method two seeds."
    names = {
        word: {
            title: [j.method for j in found if j.word == word] for title, found in judged.items()
        }
        for word in (WINS, IN_MEAN)
    }
    parts = {
        word: [f"{listing(methods)} on {title}" for title, methods in of.items() if methods]
        for word, of in names.items()
    }
    if parts[WINS]:
        return f"Yes, of what was judged on {listing(judged)}: {'; '.join(parts[WINS])}."
    if not parts[IN_MEAN]:
        return f"No candidate that was judged wins. {_shown_higher(judged)}"
    none = [title for title, methods in names[IN_MEAN].items() if not methods]
    rest = f", and none on {listing(none)}" if none else ""
    return (
        f"No candidate that was judged is shown to win; in the mean {'; '.join(parts[IN_MEAN])} "
        f"wins{rest}. {_shown_higher(judged)}"
    )


def _shown_higher(judged: Mapping[str, Sequence[Judgement]]) -> str:
    """Which candidates are shown to be higher in the tail or in mIoU: a sentence."""
    every = [(title, j) for title, found in judged.items() for j in found]
    low, high = (signed(end(j.tail.mean for _, j in every)) for end in (min, max))

    def higher(score: str) -> str:
        found = [
            f"{j.method} on {title} ({signed(contrast.mean)})"
            for title, j in every
            if (contrast := getattr(j, score)).verdict() == "higher"
        ]
        return listing(found) if found else "none"

    points = low if low == high else f"{low} to {high}"
    return (
        "The tail is shown to be higher than that of the best baseline for "
        f"{higher('tail')} (all that were judged: {points} points), mIoU higher than that of "
        f"cross-entropy for {higher('miou')}."
    )


def rows(title: str, judged: Sequence[Judgement]) -> list[list[str]]:
    """A row for each candidate: mIoU, tail and pixel accuracy in points, and the verdict."""

    def said(contrast: Contrast) -> str:
        ends = f"{signed_end(contrast.low)} to {signed_end(contrast.high)}"
        return f"{signed(contrast.mean)} ({ends})"

    return [
        [
            f"{title}: {j.method}",
            said(j.miou),
            f"{said(j.tail)}, {j.tail.reference}",
            signed(j.pixel_accuracy),
            j.word,
        ]
        for j in judged
    ]


def screening(runs: Sequence[Run]) -> pd.DataFrame:
    """The trials of all candidates: validation scores at the shift with the best validation mIoU.

    Returns:
        A row for each method that was run: ``shift``, ``miou``, ``tail`` and ``pixel_accuracy`` in
        [0, 1], and ``chosen``: whether the protocol's rule takes it. Nothing is chosen before all
        methods of the grid were run.
    """
    table = {}
    for method, members in by_method(run for run in runs if run.record).items():
        kind, strength = best_shift(members)
        curve = shift_curve(members, kind, "validation")
        row = curve[np.isclose(curve.strength, strength)].iloc[0]
        scores = {name: row[name] for name in ("miou", "tail", "pixel_accuracy")}
        table[method] = {"shift": shift_text(kind, strength), **scores}
    table = pd.DataFrame.from_dict(table, orient="index")
    if table.empty:
        return table
    table["chosen"] = False
    if all(run.record for run in runs):
        ce, rest = table.loc["CE"], table.drop("CE")
        fit = rest[(rest.miou >= ce.miou) & (rest.pixel_accuracy >= ce.pixel_accuracy - ALLOWED)]
        best = fit["tail"].idxmax() if len(fit) else (rest.miou + rest["tail"]).idxmax()
        table.loc[best, "chosen"] = True
    return table


def plot_candidates(panels: Mapping[str, Sequence[Run]]) -> Figure | None:
    """Tail against mIoU, both minus those of CE, each method at its own shift.

    Filled: candidates; hollow: baselines. Where a candidate would win is shaded.

    Args:
        panels: title -> runs; methods without a record are left out.

    Returns:
        The figure, or None without a run of CE and of another method.
    """
    points = {}
    for title, runs in panels.items():
        done = by_method(run for run in runs if run.record)
        if "CE" in done and len(done) > 1:
            points[title] = {method: _differences(done, method) for method in done}
    if not points:
        return None
    figure, axes = subplots(1, len(points), 4.6)
    colors, markers = method_styles(m for of in points.values() for m in of)
    for axis, (title, of) in zip(axes[0], points.items(), strict=True):
        for method, (miou, tail) in of.items():
            face = colors[method] if method in CANDIDATES else "white"
            style = dict(color=colors[method], markerfacecolor=face, markersize=9)
            axis.plot(100 * miou, 100 * tail, markers[method], label=method, **style)
        best = 100 * max(tail for method, (_, tail) in of.items() if method not in CANDIDATES)
        axis.margins(0.15)
        right, top = axis.get_xlim()[1], axis.get_ylim()[1]
        right, top = max(right, 1.0), max(top, best + 2)
        axis.fill_between([0, right], best, top, color="#e3e3e3", zorder=0, linewidth=0)
        axis.set(xlim=(axis.get_xlim()[0], right), ylim=(axis.get_ylim()[0], top))
        axis.set_title(title.replace(", ", "\n"), fontsize="medium")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.axhline(best, color="black", linewidth=0.8, linestyle="--")
        axis.set_xlabel("test mIoU minus that of CE (points)")
        axis.set_ylabel("IoU of the tail minus that of CE (points)")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _differences(done: Mapping[str, Sequence[Run]], method: str) -> tuple[float, float]:
    """mIoU and tail minus those of CE, each at its own shift, over the seeds that both have."""
    seeds = {run.seed for run in done[method]} & {run.seed for run in done["CE"]}
    scores = []
    for m in (method, "CE"):
        kind, strength = best_shift(done[m])
        curve = shift_curve([run for run in done[m] if run.seed in seeds], kind)
        scores.append(curve[np.isclose(curve.strength, strength)].iloc[0])
    return tuple(float(scores[0][name] - scores[1][name]) for name in ("miou", "tail"))
