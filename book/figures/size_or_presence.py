"""What the losses gain over cross-entropy where rare classes are small, and where they are in few
images: drawn scenes that hold the share of the pixels of each class."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from patlib.plots import method_styles
from patlib.plots.panels import subplots
from patlib.study.runs import Run
from patlib.study.wording import listing, signed

SMALL, LARGE = 12, 480  # pixels of one thing of a rare class, the two ends of the grid
PRESENCE = "PAT with presence"
FLAT_PRIOR = ("CB", "BMS")


def gains(runs: Iterable[Run]) -> pd.DataFrame:
    """The tail of every run, and what it gains over cross-entropy on the same scenes.

    Args:
        runs: of all benchmarks; those without a record are left out.

    Returns:
        Columns ``size`` (``rare_size``, pixels), ``images`` (share of the training images that hold
        the rarest class), ``method``, ``seed``, ``tail``, ``miou`` and ``gain`` (of the tail; NaN
        without a run of CE), in [0, 1].
    """
    rows = []
    for run in runs:
        if run.record:
            result = run.record.result
            rarest = int(np.argmin(result["class_counts"]))
            number = run.record.provenance["num_images"]["train"]
            rows.append(
                {
                    "size": run.planned.settings["data_params"]["rare_size"],
                    "images": run.class_images[rarest] / number,
                    "method": run.method,
                    "seed": run.seed,
                    "tail": run.score("tail"),
                    "miou": run.score("miou"),
                }
            )
    table = pd.DataFrame(rows, columns=["size", "images", "method", "seed", "tail", "miou"])
    ce = table[table.method == "CE"].set_index(["size", "seed"])["tail"]
    scenes = pd.MultiIndex.from_frame(table[["size", "seed"]])
    return table.assign(gain=table["tail"] - ce.reindex(scenes).to_numpy())


def seed_numbers(table: pd.DataFrame) -> str:
    """How many seeds the methods have at each size: ``3 seeds``, ``1 to 3 seeds``."""
    numbers = set(table.groupby(["size", "method"]).size())
    if numbers <= {1}:
        return "one seed" if numbers else "no seed yet"
    low, high = min(numbers), max(numbers)
    return f"{f'{low} to ' if low < high else ''}{high} seeds"


def mean_gain(table: pd.DataFrame, method: str, size: float) -> float:
    """The mean gain of a method at a size, over the seeds; NaN if nothing was run."""
    return float(table[(table.method == method) & (table["size"] == size)]["gain"].mean())


def predictions(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """What the protocol expects, what was found (in points of tail IoU), and whether it is so.

    Returns:
        Expectation, numbers and ``"as expected"``, ``"not as expected"`` or ``"still to run"``.
    """

    def at(method: str, size: float) -> float:
        return mean_gain(table, method, size)

    small, large = at("PAT", SMALL), at("PAT", LARGE)
    added = {size: at(PRESENCE, size) - at("PAT", size) for size in (SMALL, LARGE)}
    change = {m: abs(at(m, SMALL) - at(m, LARGE)) for m in ("PAT", *FLAT_PRIOR)}
    flat = [change[m] for m in FLAT_PRIOR]
    rows = [
        (
            f"PAT's gain with things of {LARGE} pixels is less than half of that with {SMALL}",
            f"{signed(small)} with {SMALL}, {signed(large)} with {LARGE}",
            [small, large],
            large < small / 2,
        ),
        (
            f"with {LARGE}, the presence term adds at least 2 points to PAT",
            signed(added[LARGE]),
            [added[LARGE]],
            added[LARGE] >= 0.02,
        ),
        (
            f"with {SMALL}, the presence term adds less than that",
            f"{signed(added[SMALL])} with {SMALL}, {signed(added[LARGE])} with {LARGE}",
            list(added.values()),
            added[SMALL] < added[LARGE],
        ),
        (
            f"{listing(FLAT_PRIOR)} change less from {SMALL} to {LARGE} than PAT",
            ", ".join(f"{method} by {100 * value:.1f}" for method, value in change.items()),
            list(change.values()),
            max(flat) < change["PAT"],
        ),
    ]
    return [
        (says, found, "as expected" if holds else "not as expected")
        if np.isfinite(numbers).all()
        else (says, "", "still to run")
        for says, found, numbers, holds in rows
    ]


def answer(table: pd.DataFrame) -> str:
    """PAT's gain at both ends with its single runs, and what the presence term adds."""
    small, large = (mean_gain(table, "PAT", size) for size in (SMALL, LARGE))
    if not np.isfinite([small, large]).all():
        return "The runs that decide this are still to come."
    share = {s: table[table["size"] == s]["images"].mean() for s in (SMALL, LARGE)}
    if large < small / 2:
        verdict = "Yes, in the mean"
    elif large < small:
        verdict = "Partly, in the mean"
    else:
        verdict = "Not in the means, which by the protocol refutes the expectation"

    between = [
        f", {signed(mean_gain(table, 'PAT', size))} with things of {size:g} pixels"
        for size in sorted(set(table["size"]) - {SMALL, LARGE})
        if np.isfinite(mean_gain(table, "PAT", size))
    ]
    pat = table[(table.method == "PAT") & (table["size"] == LARGE)].set_index("seed")["gain"]
    with_term = table[(table.method == PRESENCE) & (table["size"] == LARGE)].set_index("seed")
    added = (with_term["gain"] - pat).dropna()
    term = (
        f" There the presence term adds {signed(added.mean())} points to PAT{_runs(added)}."
        if len(added)
        else ""
    )
    gained = {s: table[(table.method == "PAT") & (table["size"] == s)]["gain"] for s in share}
    return (
        f"{verdict}: over cross-entropy, PAT gains {signed(small)} points of tail IoU"
        f"{_runs(gained[SMALL])} where the things of the rare classes have {SMALL} pixels (the "
        f"rarest class is in {100 * share[SMALL]:.0f} % of the images){''.join(between)}, and "
        f"{signed(large)}{_runs(gained[LARGE])} where they have {LARGE} pixels and are in few "
        f"images ({100 * share[LARGE]:.0f} %), at the same share of the pixels.{term}"
    )


def _runs(values: pd.Series) -> str:
    """The lowest and highest of several runs, in brackets."""
    ends = [signed(values.min()), signed(values.max())]
    return f" (single runs {ends[0]} to {ends[1]})" if len(values) > 1 else ""


def level_words(table: pd.DataFrame) -> str:
    """The tail of cross-entropy at each size: a sentence."""
    levels = 100 * table[table.method == "CE"].groupby("size")["tail"].mean()
    if levels.empty:
        return "cross-entropy is still to run."
    parts = [f"{value:.1f} % with things of {size:g} pixels" for size, value in levels.items()]
    return f"cross-entropy has a tail of {listing(parts)}."


def plot_gains(table: pd.DataFrame, column: str = "gain") -> Figure | None:
    """The tail of each method, or its gain over CE, for each size: means a line, runs small marks.

    Args:
        table: of :func:`gains`.
        column: ``"gain"`` or ``"tail"``.

    Returns:
        The figure, or None if nothing was run.
    """
    table = table[table[column].notna()]
    if column == "gain":
        table = table[table.method != "CE"]
    if table.empty:
        return None
    sizes = sorted(table["size"].unique())
    methods = list(table.method.unique())
    colors, markers = method_styles(methods)
    figure, axes = subplots(1, 1, 4.8)
    axis = axes[0, 0]
    for number, method in enumerate(methods):
        runs = table[table.method == method]
        shift = 0.5 * (number - (len(methods) - 1) / 2) / len(methods)
        x = runs["size"].map(sizes.index) + shift
        style = dict(color=colors[method], marker=markers[method])
        axis.plot(x, 100 * runs[column], linestyle="", markersize=4, alpha=0.6, **style)
        means = 100 * runs.groupby("size")[column].mean()
        at = [sizes.index(size) + shift for size in means.index]
        axis.plot(at, means, linewidth=2, markersize=10, label=method, **style)
    if column == "gain":
        axis.axhline(0, color="black", linestyle="--", linewidth=1)
    images = 100 * table.groupby("size")["images"].mean()
    axis.set_xticks(
        range(len(sizes)), [f"{s:g} pixels\nin {images[s]:.0f} % of the images" for s in sizes]
    )
    of = "tail IoU minus that of CE (points)" if column == "gain" else "test IoU of the tail (%)"
    axis.set(xlabel="one thing of a rare class; training images with the rarest class", ylabel=of)
    axis.grid(axis="y", alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
