"""Gradients by class: norms over class sizes, fitted exponents, classes beside each other."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from patlib.gradients import ClassGradients, fit_exponent
from patlib.plots.colors import METHODS, class_colors

PLACE_LABELS = {
    "logits": "logits",
    "features": "last feature map",
    "classifier": "classifier weights",
    "network": "all weights",
}
# Of the losses compared here: colour, marker, line.
STYLES = {
    "CE": (METHODS["ce"][1], METHODS["ce"][2], "-"),
    "1/S": ("#0072b2", "s", ":"),
    "PAT": (METHODS["pat"][1], METHODS["pat"][2], "--"),
}


def plot_gradients_by_size(
    states: Mapping[str, ClassGradients],
    class_names: Sequence[str],
    places: Sequence[str] = ("logits", "classifier"),
):
    """Gradient norm over class size, a point for each class of each image, with fit and guides.

    Args:
        states: title -> measurement; a column each.
        class_names: of the classes 0 ... L-1.
        places: of ``patlib.gradients.PLACES``; a row each.
    """
    figure, axes = plt.subplots(
        len(places),
        len(states),
        figsize=(3.0 * len(states) + 1.0, 2.6 * len(places) + 0.6),
        squeeze=False,
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    colors = class_colors(class_names)
    markers = "os^vDPX*"
    for row, place in zip(axes, places, strict=True):
        for axis, (title, found) in zip(row, states.items(), strict=True):
            norms = found.norms[place]
            for c in np.unique(found.classes):
                mine = found.classes == c
                style = dict(color=colors[c], marker=markers[c % len(markers)], linewidth=0.3)
                axis.scatter(found.sizes[mine], norms[mine], s=14, edgecolor="black", **style)
            fit = fit_exponent(found.sizes, norms, found.images)
            x = np.array([found.sizes.min(), found.sizes.max()])
            center = np.exp([np.log(found.sizes).mean(), np.log(norms).mean()])
            for slope, line, width in ((0.5, "--", 1), (1, ":", 1), (fit.value, "-", 2)):
                y = center[1] * (x / center[0]) ** slope
                axis.plot(x, y, color="black", linestyle=line, linewidth=width)
            axis.set(xscale="log", yscale="log")
            axis.set_title(f"{title}: α = {fit.value:.2f}", fontsize=10)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"gradient norm,\n{PLACE_LABELS[place]}")
    for axis in axes[-1]:
        axis.set_xlabel("class size S (pixels)")
    handles = [
        plt.Line2D(
            [],
            [],
            color=colors[c],
            marker=markers[c % len(markers)],
            linestyle="",
            markeredgecolor="black",
            markeredgewidth=0.3,
            label=name,
        )
        for c, name in enumerate(class_names)
    ]
    for label, line, width in (
        ("fit, slope α", "-", 2),
        ("slope 1/2", "--", 1),
        ("slope 1", ":", 1),
    ):
        handles.append(
            plt.Line2D([], [], color="black", linestyle=line, linewidth=width, label=label)
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=9)
    return figure


def plot_exponents(
    runs: Mapping[str, Mapping[str, Mapping]],
    places: Sequence[str] = tuple(PLACE_LABELS),
):
    """The exponent α of ||g|| ∝ S^α of each loss on its own way through training.

    Args:
        runs: title -> method -> epochs done -> summary (``patlib.gradients.summarise``); a row of
            panels for each title.
        places: the panels of a row; one that a summary does not have stays out.
    """
    figure, axes = plt.subplots(
        len(runs),
        len(places),
        figsize=(2.3 * len(places) + 0.8, 2.5 * len(runs) + 0.5),
        squeeze=False,
        sharey=True,
        sharex="row",
        layout="constrained",
    )
    for row, (title, methods) in zip(axes, runs.items(), strict=True):
        for axis, place in zip(row, places, strict=True):
            for height, line in ((0, "-"), (0.5, "--"), (1, ":")):
                axis.axhline(height, color="0.5", linewidth=1, linestyle=line, zorder=0)
            for k, (method, states) in enumerate(methods.items()):
                color, marker, line = STYLES.get(method, (f"C{k}", "D", "-."))
                epochs = np.array([int(epoch) for epoch in states], dtype=float)
                fits = np.array([summary[place]["exponent"] for summary in states.values()])
                # Side by side, because two of the losses are nearly the same.
                shift = 0.02 * epochs.max() * (k - (len(methods) - 1) / 2)
                axis.errorbar(
                    epochs + shift,
                    fits[:, 0],
                    np.abs(fits[:, 1:] - fits[:, :1]).T,
                    color=color,
                    marker=marker,
                    linestyle=line,
                    markersize=7 if marker == "*" else 5,
                    capsize=2,
                    label=method,
                )
            axis.set_title(PLACE_LABELS[place], fontsize=10)
        row[0].set_ylabel(f"{title}\nexponent α")
        for axis in row:
            axis.set_xlabel("epochs done")
            axis.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def plot_class_norms(
    summaries: Mapping[str, Mapping],
    class_names: Sequence[str],
    places: Sequence[str] = ("logits", "classifier", "network"),
):
    """How large the gradient of each class is beside that of the others, largest classes first.

    The geometric mean over the images that contain the class, divided by that over the classes: 1
    is the average class.

    Args:
        summaries: method -> summary (``patlib.gradients.summarise``).
        class_names: of the classes 0 ... L-1.
        places: a panel each.
    """
    first = next(iter(summaries.values()))[places[0]]
    order = [first["classes"][i] for i in np.argsort(first["sizes"])[::-1]]
    figure, axes = plt.subplots(
        1,
        len(places),
        figsize=(3.0 * len(places) + 0.5, 0.26 * len(order) + 1.4),
        squeeze=False,
        sharey=True,
        sharex=True,
        layout="constrained",
    )
    for axis, place in zip(axes[0], places, strict=True):
        axis.axvline(1, color="0.5", linewidth=1, zorder=0)
        for k, (method, summary) in enumerate(summaries.items()):
            color, marker, line = STYLES.get(method, (f"C{k}", "D", "-."))
            part = summary[place]
            norms = np.array(part["norms"]) / np.exp(np.log(part["norms"]).mean())
            rows = [order.index(c) for c in part["classes"] if c in order]
            values = [n for c, n in zip(part["classes"], norms, strict=True) if c in order]
            by_row = np.argsort(rows)
            axis.plot(
                np.array(values)[by_row],
                np.array(rows)[by_row],
                color=color,
                marker=marker,
                linestyle=line,
                linewidth=1,
                markersize=8 if marker == "*" else 5,
                label=method,
            )
        axis.set(xscale="log", xlabel="gradient norm / mean of classes")
        axis.set_title(PLACE_LABELS[place], fontsize=10)
        axis.grid(alpha=0.3)
    low, high = axes[0, 0].get_xlim()
    ticks = [x for k in range(-6, 7) for x in (10.0**k, 3 * 10.0**k) if low <= x <= high]
    axes[0, 0].set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes[0, 0].set_xticks([], minor=True)
    sizes = dict(zip(first["classes"], first["sizes"], strict=True))
    axes[0, 0].set_yticks(range(len(order)), [f"{class_names[c]} ({sizes[c]:,.0f})" for c in order])
    axes[0, 0].set_ylabel("class (mean S, pixels)")
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure
