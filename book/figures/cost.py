"""What the losses cost: figures and tables of the benchmarks' records (benchmarks/records)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.lines import Line2D

from figures import ROOT, load_script, table
from patlib.losses import LOSSES
from patlib.plots.panels import subplots
from patlib.study.runs import Run, by_method
from patlib.study.wording import listing, signed

common = load_script("benchmarks/common.py")

# Beside the eight losses: PyTorch's cross-entropy, and two formulas on one-hot tensors.
IMPLEMENTATIONS = {
    "F.cross_entropy": ("F.cross_entropy", "#ffffff", "p"),
    "ce, one-hot": ("CE, one-hot", "#aaaaaa", "o"),
    "pat, one-hot": ("PAT, one-hot", "#f4b8a8", "*"),
}
LOOKS = {n: (loss.label, loss.color, loss.marker) for n, loss in LOSSES.items()}
LOOKS |= {
    row: (row.replace(name, LOSSES[name].label, 1), LOSSES[name].color, LOSSES[name].marker)
    for row, (name, _) in common.VARIANTS.items()
}
LOOKS |= IMPLEMENTATIONS
GIGA = 1e9
ERROR = {"ecolor": "#777777", "elinewidth": 1.2}


def plot_time_memory(rows: Sequence[Mapping]):
    """Time of an epoch against peak memory, as Fig. 6 of the paper: a panel for each data set.

    Args:
        rows: ``results`` of a record of ``benchmarks/figure6.py``: ``data_set``, ``image_size``,
            ``num_classes``, ``loss``, ``epoch_seconds`` (a spread, see below) and ``peak_bytes``.

    A spread is a dict of ``median``, ``q1``, ``q3`` and ``n``; lines reach from q1 to q3.
    """
    panels = by_key(rows, "data_set")
    figure, axes = subplots(1, len(panels), 3.6)
    for axis, (title, group) in zip(axes[0], panels.items(), strict=True):
        for row in group:
            time = row["epoch_seconds"]
            memory = row["peak_bytes"] / GIGA
            style = _style(row["loss"], size=10)
            axis.errorbar(memory, time["median"], yerr=_reach(time), **ERROR, **style)
        height, width = group[0]["image_size"]
        size = f"{height} x {width}, {group[0]['num_classes']} classes"
        axis.set_title(f"{title}\n{size}", loc="left", fontsize="medium")
        axis.set_xlabel("peak memory (GB)")
        axis.margins(0.12)
        # Losses may differ by a few bytes only: never an axis of less than 4 %.
        peaks = [row["peak_bytes"] / GIGA for row in group]
        pad = max(0.12 * (max(peaks) - min(peaks)), 0.02 * max(peaks))
        axis.set_xlim(min(peaks) - pad, max(peaks) + pad)
        axis.grid(color="#dddddd", linewidth=0.5)
        axis.set_axisbelow(True)
    axes[0, 0].set_ylabel("time of an epoch (s)")
    figure.legend(handles=_legend(rows), loc="outside lower center", ncols=6, frameon=False)
    return figure


def plot_figure6_quantities(rows: Sequence[Mapping], device_use: str):
    """Time, memory and device use in panels of their own: a row of panels for each data set.

    Args:
        rows: as for :func:`plot_time_memory`, with ``device_use`` (a spread, or None where it was
            not measured).
        device_use: what is meant by it: the label of its axis.
    """
    groups = by_key(rows, "data_set")
    names = list(dict.fromkeys(row["loss"] for row in rows))
    figure, axes = subplots(len(groups), 3, 0.22 * len(names) * len(groups) + 1.2, sharey=True)
    for line, (title, group) in zip(axes, groups.items(), strict=True):
        by_loss = {row["loss"]: row for row in group}
        for y, name in enumerate(names):
            row = by_loss[name]
            _dot(line[0], row["epoch_seconds"], y, name)
            _dot(line[1], _exactly(row["peak_bytes"] / GIGA), y, name)
            if row["device_use"]:
                _dot(line[2], _times(row["device_use"], 100), y, name)
        line[0].set_title(title, loc="left", fontsize="medium")
        for axis in line[:2]:
            axis.set_xlim(0, 1.08 * axis.dataLim.x1)
        if not any(row["device_use"] for row in group):
            line[2].text(0.5, 0.5, "not measured", transform=line[2].transAxes, ha="center")
        line[2].set_xlim(0, 105)
    _name_rows(axes, names)
    for axis, label in zip(
        axes[-1], ("time of an epoch (s)", "peak memory (GB)", device_use), strict=True
    ):
        axis.set_xlabel(label)
    return figure


def plot_loss_only(rows: Sequence[Mapping]):
    """A loss alone, forward and backward: its time and peak memory by those of F.cross_entropy.

    One column of panels for each shape; filled: float32, open: bfloat16, lines from q1 to q3.

    Args:
        rows: ``results`` of a record of ``benchmarks/losses.py``: ``shape``, ``dtype``, ``loss``,
            ``ratio_to_F.cross_entropy`` (a spread) and ``peak_bytes``.
    """
    shapes = by_key([row | {"key": tuple(row["shape"])} for row in rows], "key")
    names = [name for name in dict.fromkeys(r["loss"] for r in rows) if name != "F.cross_entropy"]
    figure, axes = subplots(2, len(shapes), 0.42 * len(names) + 1.9, sharey=True, sharex="row")
    for column, (shape, group) in zip(axes.T, shapes.items(), strict=True):
        for offset, dtype in ((-0.14, "float32"), (0.14, "bfloat16")):
            of = {row["loss"]: row for row in group if row["dtype"] == dtype}
            for y, name in enumerate(names):
                if name not in of:
                    continue
                memory = of[name]["peak_bytes"] / of["F.cross_entropy"]["peak_bytes"]
                filled = dtype == "float32"
                _dot(column[0], of[name]["ratio_to_F.cross_entropy"], y + offset, name, filled)
                _dot(column[1], _exactly(memory), y + offset, name, filled)
        column[0].set_title(" x ".join(map(str, shape)), fontsize="medium")
        for axis in column:
            axis.axvline(1, color="black", linewidth=1)
            axis.set_xscale("log")
    _name_rows(axes, names)
    for line, what in zip(axes, ("time", "memory"), strict=True):
        most = max(axis.dataLim.x1 for axis in line)
        ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if tick <= max(20, most)]
        for axis in line:
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
        figure_label = f"{what}, as a multiple of F.cross_entropy's (log scale)"
        line[len(line) // 2].set_xlabel(figure_label, x=0 if len(line) % 2 == 0 else 0.5)
    handles = [
        Line2D([], [], linestyle="", marker="o", color="black", markerfacecolor=face, label=label)
        for face, label in (("black", "float32"), ("white", "bfloat16"))
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def plot_training_cost(losses: Sequence[Mapping], epochs: Sequence[Mapping]):
    """Left the share of the loss in a training step, right an epoch of every network with PAT.

    Args:
        losses: of a record of ``benchmarks/training.py``: ``loss`` and ``share`` (a spread).
        epochs: of the same record: ``model``, ``loss`` and ``seconds`` (a spread).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 2.9), layout="constrained")
    for y, row in enumerate(losses):
        color = LOOKS[row["loss"]][1]
        share = _times(row["share"], 100)
        _bar(left, y, share, color, f"{share['median']:.1f} %")
    left.set_yticks(range(len(losses)), [LOOKS[row["loss"]][0] for row in losses])
    left.set_xlabel("share of the loss in a step (%)")
    networks = [row for row in epochs if row["loss"] == "pat"]
    for y, row in enumerate(networks):
        _bar(right, y, row["seconds"], "#bdbdbd", f"{row['seconds']['median']:.1f} s")
    right.set_yticks(range(len(networks)), [row["model"] for row in networks])
    right.set_xlabel("time of an epoch with PAT (s)")
    for axis in (left, right):
        axis.invert_yaxis()
        axis.set_xlim(0, 1.18 * axis.dataLim.x1)  # room for the numbers
    return figure


def by_key(rows: Sequence[Mapping], key: str) -> dict:
    """The rows of a record with the same value of a key, together."""
    groups: dict = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _exactly(value: float) -> dict:
    return {"median": value, "q1": value, "q3": value}


def _times(spread: Mapping, factor: float) -> dict:
    return {name: factor * spread[name] for name in ("median", "q1", "q3")}


def _reach(spread: Mapping) -> list[list[float]]:
    """The quartiles as matplotlib's error bars: below and above the median."""
    return [[spread["median"] - spread["q1"]], [spread["q3"] - spread["median"]]]


def _style(name: str, filled: bool = True, size: float = 8) -> dict:
    _, color, marker = LOOKS[name]
    face = color if filled else "white"
    edge = {"markeredgecolor": "black", "markeredgewidth": 0.8}
    return {"linestyle": "", "marker": marker, "markersize": size, "markerfacecolor": face, **edge}


def _dot(axis, spread: Mapping, y: float, name: str, filled: bool = True) -> None:
    style = _style(name, filled)
    axis.errorbar(spread["median"], y, xerr=_reach(spread), **ERROR, **style)


def _bar(axis, y: float, spread: Mapping, color: str, text: str) -> None:
    axis.barh(y, spread["median"], color=color, edgecolor="black", linewidth=0.5)
    axis.errorbar(spread["median"], y, xerr=_reach(spread), linestyle="", **ERROR)
    axis.annotate(text, (spread["q3"], y), (4, 0), textcoords="offset points", va="center")


def _name_rows(axes, names: Sequence[str]) -> None:
    """Losses from the top down, named at the left end."""
    for axis in axes.flat:
        axis.set_yticks(range(len(names)), [LOOKS[name][0] for name in names], fontsize=8)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.grid(color="#dddddd", linewidth=0.5)
        axis.set_axisbelow(True)


def _legend(rows: Sequence[Mapping]) -> list[Line2D]:
    names = dict.fromkeys(row["loss"] for row in rows)
    return [Line2D([], [], label=LOOKS[name][0], **_style(name)) for name in names]


def read_record(name: str, records: str | None, required: bool = True) -> dict | None:
    """A record of the benchmarks, from ``records`` or else from benchmarks/records."""
    folder = Path(records).expanduser() if records else ROOT / "benchmarks" / "records"
    path = folder / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    if required:
        raise FileNotFoundError(f"records: {folder} has no {path.name}; make bench writes it")
    return None


def by_data_set(record: Mapping) -> dict[str, dict[str, Mapping]]:
    """Results of ``benchmarks/figure6.py``: data set -> loss -> its row."""
    groups = by_key(record["results"], "data_set")
    return {name: {row["loss"]: row for row in rows} for name, rows in groups.items()}


def measured(rows: Mapping) -> list[str]:
    """The losses of ``LOSSES`` that were measured; a new one is not until `make bench` runs."""
    return [loss for loss in LOSSES if loss in rows]


SAME_WORK = ("focal", "cb", "cb_focal")  # as PAT: cross-entropy times one number a pixel


def noise(rows: Mapping[str, Mapping]) -> float:
    """The largest deviation from 1 of the quartiles of ratios to CE that should be 1.

    These are the ratios of losses that do the same work as CE.
    """
    ratios = [rows[loss]["ratio_to_ce"] for loss in SAME_WORK]
    return max(abs(ratio[end] - 1) for ratio in ratios for end in ("q1", "q3"))


def verdict(ratio: Mapping, noise: float) -> str:
    """What follows from a ratio of times."""
    if ratio["n"] < 5:
        return "too few repetitions"
    if ratio["q1"] > 1 + noise:
        return "slower"
    return "faster" if ratio["q3"] < 1 - noise else "no difference"


def quartiles(ratio: Mapping) -> str:
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"


def judged(ratio: Mapping, noise: float) -> str:
    return f"{quartiles(ratio)}, {verdict(ratio, noise)}"


def plus_minus(noise: float) -> str:
    return f"±{100 * noise:.0f} %"


def formula_table(name: str, data_sets: Mapping):
    """Time of a training step of PAT by that of cross-entropy, each written in the two ways."""
    kinds = {
        "PAT to CE, both patlib": ("pat", "ratio_to_ce"),
        "PAT to CE, both one-hot": ("pat, one-hot", "ratio_to_ce, one-hot"),
        "PAT, patlib, to F.cross_entropy": ("pat", "ratio_to_F.cross_entropy"),
        "PAT, one-hot, to F.cross_entropy": ("pat, one-hot", "ratio_to_F.cross_entropy"),
    }
    rows = []
    for title, losses in data_sets.items():
        deviation = noise(losses)
        cells = (judged(losses[loss][ratio], deviation) for loss, ratio in kinds.values())
        rows.append([title, *cells, plus_minus(deviation)])
    return table(name, ["time of a training step", *kinds, "noise"], rows)


def memory_table(name: str, data_sets: Mapping):
    """Peak memory of a training step, and its ratios between losses."""
    pairs = {
        "PAT / CE": ("pat", "ce"),
        "PAT / Focal": ("pat", "focal"),
        "BLV / PAT": ("blv", "pat"),
        "LDAM / PAT": ("ldam", "pat"),
        "PAT / CE, one-hot": ("pat, one-hot", "ce, one-hot"),
        "PAT, one-hot / F.cross_entropy": ("pat, one-hot", "F.cross_entropy"),
    }
    rows = []
    for title, losses in data_sets.items():
        peak = {loss: row["peak_bytes"] for loss, row in losses.items()}
        known = [peak[loss] for loss in measured(peak)]
        ends = dict.fromkeys(f"{end / 1e6:.0f}" for end in (min(known), max(known)))
        ratios = (f"{peak[a] / peak[b]:.3f}" for a, b in pairs.values())
        rows.append([title, " to ".join(ends), *ratios])
    return table(name, ["peak memory of a step", "the eight losses (MB)", *pairs], rows)


def statements_table(name: str, data_sets: Mapping, where: str):
    """The paper's statements on cost beside what the records say."""
    city, pet, nyu = (data_sets[n] for n in ("Cityscapes", "Oxford-IIIT Pet", "NYUv2"))
    used, use = "not measured", {loss: city[loss]["device_use"] for loss in measured(city)}
    if all(use.values()):
        medians = {loss: 100 * u["median"] for loss, u in use.items()}
        ahead = {LOSSES[loss].label: value - medians["pat"] for loss, value in medians.items()}
        below = [name for name, points in ahead.items() if points <= -1]
        above = [name for name, points in ahead.items() if points >= 1]
        used = (
            f"PAT {medians['pat']:.1f} %, CE {medians['ce']:.1f} %; all eight "
            f"{min(medians.values()):.1f} to {max(medians.values()):.1f} %; "
            f"a point or more below PAT: {', '.join(below) or 'none'}; "
            f"above: {', '.join(above) or 'none'}"
        )
    step = {loss: city[loss]["step_seconds"]["median"] for loss in measured(city)}
    first, deviation = min(step, key=step.get), noise(city)
    least = f"least median: {LOSSES[first].label}"
    least += f", CE {step['ce'] / step[first]:.2f} times it" if first != "ce" else ""
    least += f"; PAT to CE {judged(city['pat']['ratio_to_ce'], deviation)}"
    least += f"; noise {plus_minus(deviation)}"

    def more(losses, a, b):
        ratio = losses[a]["peak_bytes"] / losses[b]["peak_bytes"]
        rounded = round(100 * (ratio - 1), 1) + 0.0  # no -0.0
        return f"{LOSSES[a].label} to {LOSSES[b].label} {rounded:+.1f} %"

    others = [
        f"{title}: {more(losses, 'blv', 'pat')}, {more(losses, 'ldam', 'pat')}"
        for title, losses in (("Oxford-IIIT Pet", pet), ("NYUv2", nyu))
    ]
    pats = [
        f"{title}: {more(losses, 'pat', 'ce')}, {more(losses, 'pat', 'focal')}"
        for title, losses in data_sets.items()
    ]
    gigabytes = "BLV and LDAM acquire nearly 17 GB and 20 GB, PAT roughly 15 GB: "
    gigabytes += " and ".join(f"{100 * (other / 15 - 1):+.0f} %" for other in (17, 20))
    rows = [
        [gigabytes, "; ".join(others)],
        ["Cityscapes: PAT is among the three lowest in GPU use, with CE", used],
        ["Cityscapes: CE takes the least time", least],
        ["PAT needs much more memory than CE and Focal", "; ".join(pats)],
    ]
    return table(name, ["the paper, on a GPU", where], rows)


def precision_table(name: str, runs: Sequence[Run]) -> tuple[HTML, str]:
    """bfloat16 minus float32, of methods named ``LOSS, bfloat16`` and ``LOSS, float32`` in a grid.

    Returns:
        The table, in points of the validation scores, and a sentence: the rule of the protocol is
        that the mean difference is below the standard deviation over the float32 seeds.
    """
    methods = by_method(run for run in runs if run.record)
    rows, beyond = [], []
    for loss in dict.fromkeys(method.split(", ")[0] for method in methods):
        for metric, title in (("miou", "mIoU"), ("pixel_accuracy", "pixel accuracy")):
            fast, exact = (
                {run.seed: run.score(metric, "validation") for run in methods.get(label, ())}
                for label in (f"{loss}, bfloat16", f"{loss}, float32")
            )
            seeds = sorted(fast.keys() & exact.keys())
            if len(seeds) < 2:
                continue
            difference = float(np.mean([fast[s] - exact[s] for s in seeds]))
            deviation = float(np.std([exact[s] for s in seeds], ddof=1))
            if abs(difference) >= max(deviation, 0.005):
                beyond.append(f"{title} of {loss}")
            rows.append(
                [f"{loss}, {title}", signed(difference), f"{100 * deviation:.1f}", len(seeds)]
            )
    header = ["validation score", "bfloat16 − float32", "deviation over seeds", "seeds"]
    if not rows:
        words = "The runs in bfloat16 are still to come."
    elif beyond:
        fewest = min(row[-1] for row in rows)
        words = f"With {fewest} seeds the {listing(beyond)} differs by more than the seeds do."
    else:
        fewest = min(row[-1] for row in rows)
        words = f"With {fewest} seeds no mean difference exceeds the deviation over seeds."
    return table(name, header, rows), words
