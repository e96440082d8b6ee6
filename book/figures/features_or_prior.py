"""Scores of each method over the shift of its logits, and what cross-entropy reaches by a shift."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from patlib.plots import method_styles
from patlib.plots.panels import subplots
from patlib.study.runs import Run, by_method
from patlib.study.shifts import best_shift, excess, shift_curve, shifted_counts
from patlib.study.simultaneous import score_methods
from patlib.study.wording import signed

SYMBOLS = {"tau": "τ", "kappa": "κ"}


def summary(runs: Sequence[Run]) -> pd.DataFrame:
    """Each method of a benchmark before and after the shift that validation chooses for it.

    Args:
        runs: of one benchmark; methods without a record are left out.

    Returns:
        A row for each method: ``seeds``, ``shift`` (``τ = 0.25``), ``miou``, ``pixel_accuracy``,
        ``head`` and ``tail`` before and, as ``shifted_miou`` ..., after it, in [0, 1]; ``excess``
        over the curve of CE (see :func:`patlib.study.shifts.excess`; NaN for CE and without it).
    """
    done = by_method(run for run in runs if run.record)
    reference = shift_curve(done["CE"], "tau") if "CE" in done else None
    rows = {}
    for method, members in done.items():
        kind, strength = best_shift(members)
        curve = shift_curve(members, kind).set_index("strength")
        names = ("miou", "pixel_accuracy", "head", "tail")
        row = {"seeds": len(members), "shift": f"{SYMBOLS[kind]} = {strength:g}"}
        row |= {name: curve[name][0.0] for name in names}
        row |= {f"shifted_{name}": curve[name][strength] for name in names}
        row["excess"] = np.nan
        if reference is not None and method != "CE":
            row["excess"] = excess(reference, row["shifted_miou"], row["shifted_tail"])
        rows[method] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def shifted_contrasts(runs: Sequence[Run], metric: str, resamples: int = 2000) -> dict:
    """Every method minus CE, each at the shift that validation chooses: method -> Contrast.

    Empty with a single seed.
    """
    done = by_method(run for run in runs if run.record)
    if "CE" not in done or len(done) < 2:
        return {}
    shifts = {method: best_shift(members) for method, members in done.items()}

    def counts(run: Run) -> np.ndarray:
        return shifted_counts(run, *shifts[run.method])

    scores = score_methods([r for m in done.values() for r in m], metric, counts, resamples)
    if scores.residual_dof < 1:
        return {}
    return {contrast.method: contrast for contrast in scores.against("CE")}


def answer(title: str, runs: Sequence[Run], resamples: int = 2000, margin: float = 0.01) -> str:
    """Two sentences on PAT and CE, each at its own shift.

    Args:
        title: of the benchmark.
        runs: its runs.
        resamples: of the test part.
        margin: an excess up to this is called none.
    """
    table = summary(runs)
    if not {"CE", "PAT"} <= set(table.index):
        return f"{title}: PAT and cross-entropy are still to run."
    pat, ce = table.loc["PAT"], table.loc["CE"]
    seeds = int(min(pat.seeds, ce.seeds))
    of_seeds = "one seed" if seeds == 1 else f"{seeds} seeds"
    found = {
        metric: shifted_contrasts(runs, metric, resamples).get("PAT") for metric in ("miou", "tail")
    }

    def part(metric: str) -> str:
        difference = pat[f"shifted_{metric}"] - ce[f"shifted_{metric}"]
        contrast, name = found[metric], {"miou": "mIoU", "tail": "tail"}[metric]
        judged = (
            ""
            if contrast is None
            else (f" ({contrast.verdict()}, {signed(contrast.low)} to {signed(contrast.high)})")
        )
        return f"{signed(difference)} points of {name}{judged}"

    if pat.excess > margin:
        reach = (
            "No shift of cross-entropy comes closer to that pair than "
            f"{100 * pat.excess:.1f} points: what PAT gains is more than another prior."
        )
    else:
        reach = (
            "A shift of cross-entropy reaches that pair of scores within "
            f"{100 * max(pat.excess, 0):.1f} points, without another training."
        )
    if seeds == 1:
        reach = f"In this one run: {reach[0].lower()}{reach[1:]} Other seeds may differ."
    return (
        f"{title}, {of_seeds}: each moved to the prior that validation chooses, PAT differs from "
        f"cross-entropy by {part('miou')} and {part('tail')}. {reach}"
    )


def plot_trade_off(panels: Mapping[str, Sequence[Run]]) -> Figure | None:
    """Tail against mIoU over the shift by τ: a line for each method.

    A large mark is the method as trained, an open ring the shift that validation chooses.

    Args:
        panels: title -> runs; methods without a record are left out.

    Returns:
        The figure, or None if nothing was run.
    """
    done = {t: by_method(r for r in runs if r.record) for t, runs in panels.items()}
    done = {title: methods for title, methods in done.items() if methods}
    if not done:
        return None
    figure, axes = subplots(1, len(done), 5.0)
    colors, markers = method_styles(m for methods in done.values() for m in methods)
    for axis, (title, methods) in zip(axes[0], done.items(), strict=True):
        for method, members in methods.items():
            curve = 100 * shift_curve(members, "tau").set_index("strength")
            style = dict(color=colors[method], label=method)
            axis.plot(curve.miou, curve["tail"], linewidth=2, **style)
            start = curve.loc[0.0]
            axis.scatter(
                start["miou"], start["tail"], s=70, color=colors[method], marker=markers[method]
            )
            kind, strength = best_shift(members)
            chosen = 100 * shift_curve(members, kind).set_index("strength").loc[strength]
            ring = dict(facecolors="none", edgecolors=colors[method], linewidths=2)
            axis.scatter(chosen["miou"], chosen["tail"], s=150, **ring)
        axis.set(title=title, xlabel="test mIoU (%)", ylabel="test IoU of the tail (%)")
        axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def plot_pixel_accuracy(panels: Mapping[str, Sequence[Run]]) -> Figure | None:
    """Pixel accuracy over κ, which moves each loss from its own prior to that of the pixels.

    Only methods whose prior is another one. If a network estimates under the prior that its loss
    says, its line is highest at κ = 1.
    """
    curves = {}
    for title, runs in panels.items():
        for method, members in by_method(r for r in runs if r.record).items():
            curve = shift_curve(members, "kappa")
            if len(curve) and np.ptp(curve.pixel_accuracy) > 1e-9:
                curves.setdefault(title, {})[method] = curve
    if not curves:
        return None
    figure, axes = subplots(1, len(curves), 4.0)
    colors, markers = method_styles(m for methods in curves.values() for m in methods)
    for axis, (title, methods) in zip(axes[0], curves.items(), strict=True):
        for method, curve in methods.items():
            style = dict(color=colors[method], marker=markers[method], label=method)
            axis.plot(curve.strength, 100 * curve.pixel_accuracy, linewidth=2, **style)
        axis.axvline(1, color="black", linestyle="--", linewidth=1)
        axis.set(title=title, xlabel="κ", ylabel="test pixel accuracy (%)")
        axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
