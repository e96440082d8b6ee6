"""Methods beside each other: scores by seed, differences, IoU by class, curves, predictions."""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from patlib.data import SegmentationDataset
from patlib.losses import LOSSES
from patlib.metrics import class_groups
from patlib.plots.colors import label_colors
from patlib.plots.panels import class_legend, subplots
from patlib.study.runs import Run, by_method, scores
from patlib.study.statistics import Difference, mean_iou

_WRONG, _RIGHT = "#1b1b1b", "#f2f2f2"  # no colour of a class
_STYLES = {loss.label: (loss.color, loss.marker) for loss in LOSSES.values()}
# Of methods that are no loss of their own, such as a variant of PAT, beside losses; those of the
# study and of `patlib compare` look the same in every figure.
_VARIANTS = {
    "CE + Jaccard": ("#001155", "p"),
    "1/√S": ("#88ccaa", "d"),
    "PAT with presence": ("#004455", "<"),
    "CE, median frequency": ("#0000ff", ">"),
}


def method_styles(methods: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Colour and marker of each method: those of its loss, or others that no loss has.

    Many methods without a loss of their name, or these alone, have colours from dark to light.
    """
    methods = list(dict.fromkeys(methods))
    rest = [m for m in methods if m not in _STYLES]
    if len(rest) <= len(_VARIANTS) and len(rest) < len(methods):
        styles = {m: _VARIANTS[m] for m in rest if m in _VARIANTS}
        free = [style for style in _VARIANTS.values() if style not in styles.values()]
        styles |= dict(zip([m for m in rest if m not in _VARIANTS], free, strict=False))
    else:
        series = dict(
            zip(methods, sns.color_palette("cividis", len(methods)).as_hex(), strict=True)
        )
        styles = {m: (series[m], "o") for m in rest}
    styles = {m: _STYLES.get(m) or styles[m] for m in methods}
    return {m: s[0] for m, s in styles.items()}, {m: s[1] for m, s in styles.items()}


def plot_scores(
    panels: Mapping[str, Sequence[Run]], metric: str = "miou", xlabel: str = "test mIoU (%)"
) -> Figure | None:
    """Every seed a small mark, the mean a large one; the dashed line is the mean of the first row.

    All panels span the same number of points, so that a distance means the same in each.

    Args:
        panels: title -> runs, of the same methods in each; a method without a record stays empty,
            a panel without any is left out.
        metric, xlabel: what is drawn.

    Returns:
        The figure, or None if nothing was run.
    """
    tables = {title: scores(runs, metric) for title, runs in panels.items()}
    tables = {title: table for title, table in tables.items() if table["score"].notna().any()}
    if not tables:
        return None
    methods = list(dict.fromkeys(next(iter(tables.values()))["method"]))
    colors, markers = method_styles(methods)
    figure, axes = subplots(1, len(tables), 0.34 * len(methods) + 1.2, sharey=True)
    half = 0.54 * max(1, *(100 * np.ptp(table["score"].dropna()) for table in tables.values()))
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        table = table.assign(score=100 * table["score"])
        middle = (table["score"].min() + table["score"].max()) / 2
        means = table.groupby("method")["score"].mean().reindex(methods)
        axis.axvline(means.iloc[0], color="black", linestyle="--", linewidth=0.8)
        several = table.groupby("method")["score"].transform("count") > 1
        sns.stripplot(
            table[several], x="score", y="method", order=methods, hue="method", palette=colors,
            jitter=False, size=4, alpha=0.65, legend=False, ax=axis,
        )  # fmt: skip
        for points in axis.collections:  # seeds above their mean, so that neither hides the other
            points.set_offsets(points.get_offsets() - [0, 0.24])
        for row, method in enumerate(methods):
            style = dict(s=60, color=colors[method], marker=markers[method], zorder=3)
            if np.isfinite(means[method]):
                axis.scatter(means[method], row + 0.12, **style)
        axis.set(title=title, xlabel=xlabel, ylabel="", xlim=(middle - half, middle + half))
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.6)
    return figure


def plot_differences(
    tables: Mapping[str, Mapping[str, Sequence[Difference]]],
) -> Figure | None:
    """Differences with their intervals: a row of panels for each data set, a column each score.

    Filled: called higher or lower (see :class:`~patlib.study.statistics.Difference`); open: not.
    Small ticks above: the single seeds.

    Args:
        tables: title of the row -> title of the panel -> differences, of the same methods; all
            rows have the same panels. A row without any is left out.

    Returns:
        The figure, or None if there is no difference.
    """
    tables = {title: row for title, row in tables.items() if any(row.values())}
    if not tables:
        return None
    panels = list(next(iter(tables.values())))
    heights = [max(map(len, row.values())) for row in tables.values()]
    figure, axes = subplots(
        len(tables),
        len(panels),
        0.27 * sum(heights) + 0.75 * len(tables),
        height_ratios=[height + 0.5 for height in heights],
        sharey="row",
        sharex="col",
    )
    for row, (title, columns) in zip(axes, tables.items(), strict=True):
        for axis, panel in zip(row, panels, strict=True):
            for position, difference in enumerate(columns[panel]):
                _plot_difference(axis, position, difference)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.grid(axis="x", alpha=0.3)
        names = [difference.method for difference in columns[panels[0]]]
        row[0].set(yticks=range(len(names)), yticklabels=names, ylabel=title.replace(" ", "\n", 1))
        row[0].set_ylim(len(names) - 0.5, -0.7)
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.set_title(panel)
    reference = next(d.reference for row in tables.values() for p in row.values() for d in p)
    figure.supxlabel(f"difference from {reference} in mean IoU (percentage points)", fontsize=10)
    return figure


def _plot_difference(axis, position: int, difference: Difference) -> None:
    color = _STYLES.get(difference.method, ("#000000",))[0]
    low, middle, high = (100 * v for v in (difference.low, difference.mean, difference.high))
    axis.hlines(position, low, high, color=color, linewidth=1.8)
    face = color if difference.significant else "white"
    axis.plot(middle, position, "o", markersize=6, color=color, markerfacecolor=face)
    if len(difference.by_seed) > 1:
        values = 100 * np.array(list(difference.by_seed.values()))
        axis.plot(values, np.full(len(values), position - 0.33), "|", color=color, markersize=4)


def plot_class_iou(runs: Iterable[Run]) -> Figure | None:
    """Test IoU of every class and method, the mean over seeds; common classes left, rare right.

    Args:
        runs: of one data set; those without a record are left out.

    Returns:
        The figure, or None if nothing was run.
    """
    methods = by_method(run for run in runs if run.record)
    if not methods:
        return None
    result = next(iter(methods.values()))[0].record.result
    groups = class_groups(result["class_counts"])
    order = [c for classes in groups.values() for c in classes]
    shares = 100 * np.array(result["class_counts"]) / sum(result["class_counts"])
    iou = pd.DataFrame(
        {m: 100 * np.mean([run.score("iou") for run in runs], 0) for m, runs in methods.items()},
        index=[f"{name}\n{s:.2g} %" for name, s in zip(result["class_names"], shares, strict=True)],
    ).iloc[order]
    few = len(order) <= 3
    figure, axis = plt.subplots(
        figsize=(9, 4 if few else 0.34 * len(methods) + 1.6), layout="constrained"
    )
    sns.heatmap(
        iou.T, ax=axis, cmap="cividis", vmin=0, vmax=100, annot=True, fmt=".0f",
        annot_kws={"fontsize": 9}, cbar_kws={"label": "test IoU (%)", "pad": 0.01},
    )  # fmt: skip
    axis.tick_params(axis="x", rotation=0 if few else 40)
    axis.tick_params(axis="y", rotation=0)
    axis.set_xlabel("class, and its share of the training pixels")
    edge = 0
    for group, classes in groups.items():
        axis.text(edge + len(classes) / 2, -0.1, group, ha="center", va="bottom", fontsize=10)
        edge += len(classes)
        axis.axvline(edge, color="white", linewidth=2.5)
    return figure


def plot_validation(panels: Mapping[str, Iterable[Run]], ncols: int = 3) -> Figure | None:
    """Validation mIoU by epoch: the mean over seeds, and a band from the lowest to the highest.

    Args:
        panels: title -> runs; those without a record are left out.
        ncols: panels in a row.

    Returns:
        The figure, or None if nothing was run.
    """
    curves = [
        pd.DataFrame(run.record.result["curves"]).assign(panel=title, method=run.method)
        for title, runs in panels.items()
        for run in runs
        if run.record
    ]
    if not curves:
        return None
    curves = pd.concat(curves, ignore_index=True)
    curves["validation_miou"] = 100 * curves["validation_miou"].astype(float)
    colors, markers = method_styles(curves["method"])
    titles = curves["panel"].unique()
    rows = -(-len(titles) // ncols)
    figure, axes = plt.subplots(
        rows,
        min(ncols, len(titles)),
        figsize=(9, 1.2 + 2.4 * rows),
        squeeze=False,
        layout="constrained",
    )
    for axis, title in zip(axes.flat, titles, strict=False):
        panel = curves[curves["panel"] == title]
        every = max(1, panel["epoch"].max() // 6)
        sns.lineplot(
            panel, x="epoch", y="validation_miou", hue="method", style="method", palette=colors,
            markers=markers, dashes=True, errorbar=("pi", 100), err_kws={"alpha": 0.13, "lw": 0},
            markersize=8, markeredgewidth=0.3, markevery=every, linewidth=1.3, ax=axis,
        )  # fmt: skip
        axis.set(xlabel="epoch", ylabel="validation mIoU (%)")
        axis.set_title(title, fontsize=10)  # a network's name may be long
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    handles = {}
    for axis in axes.flat:
        if axis.get_legend():
            handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
            axis.get_legend().remove()
        else:
            axis.set_visible(False)
    # The labels of six columns can be wider than the figure, which would cut them.
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(len(handles), 5))
    return figure


def plot_runs(
    runs: Iterable[Run],
    dataset: SegmentationDataset | None = None,
    columns: Sequence[int] = range(6),
) -> Figure | None:
    """What the first run of each method predicts on some of the test images that it kept.

    Args:
        runs: all of one data set; those without a record are left out.
        dataset: its test part at the size of the runs, for images, truth and errors
            (:func:`plot_predictions`); without it the label maps alone, each with its pixel
            accuracy and mean IoU in percent.
        columns: which of the images kept.

    Returns:
        The figure, or None if nothing was run.
    """
    methods = by_method(run for run in runs if run.record)
    if not methods:
        return None
    class_names = next(iter(methods.values()))[0].record.result["class_names"]
    kept = {method: runs[0].images() for method, runs in methods.items()}
    columns = list(columns)
    maps = {method: images["labels"][columns] for method, images in kept.items()}
    shown = next(iter(kept.values()))["shown"][columns]
    if dataset is not None:
        images, truth = zip(*(dataset.arrays(int(i)) for i in shown), strict=True)
        return plot_predictions(images, truth, maps, class_names)
    figure, axes = _image_grid(len(maps), len(columns), maps[next(iter(maps))][0].shape)
    for row, (method, labels) in zip(axes, maps.items(), strict=True):
        row[0].set_ylabel(method)
        for axis, label_map, i in zip(row, labels, shown, strict=True):
            counts = kept[method]["counts"][i]
            tp, true, _ = counts.astype(float).sum(-1)
            axis.imshow(label_colors(label_map, class_names), interpolation="nearest")
            note = f"{100 * tp / max(1, true):.0f} / {100 * mean_iou(counts):.0f}"
            axis.set_xlabel(note, fontsize=8, labelpad=1)
    class_legend(figure, class_names, maps.values())
    return figure


def plot_predictions(
    images: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[np.ndarray]],
    class_names: Sequence[str],
) -> Figure:
    """A pair of columns for each image: image and truth, then every method's labels and errors.

    Errors are dark, correct pixels nearly white, ignored ones white.

    Args:
        images: RGB (H, W, 3) each.
        truth: labels (H, W) each, 255 for ignored pixels.
        predictions: label of a method -> label maps (H, W), one per image.
        class_names: names of the classes 0 ... L-1.
    """
    figure, axes = _image_grid(1 + len(predictions), 2 * len(images), truth[0].shape)
    for column, (image, mask) in enumerate(zip(images, truth, strict=True)):
        axes[0, 2 * column].imshow(image)
        axes[0, 2 * column].set_title("image", fontsize=9)
        axes[0, 2 * column + 1].imshow(label_colors(mask, class_names), interpolation="nearest")
        axes[0, 2 * column + 1].set_title("truth", fontsize=9)
    for row, (method, maps) in enumerate(predictions.items(), start=1):
        axes[row, 0].set_ylabel(method)
        for column, (labels, mask) in enumerate(zip(maps, truth, strict=True)):
            left, right = axes[row, 2 * column : 2 * column + 2]
            left.imshow(label_colors(labels, class_names), interpolation="nearest")
            wrong = np.where(mask == 255, 1.0, np.where(labels != mask, 0x1B / 255, 0xF2 / 255))
            right.imshow(wrong, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            valid = mask != 255
            score = 100 * np.mean(labels[valid] == mask[valid]) if valid.any() else np.nan
            right.set_xlabel(f"{score:.0f} % correct", fontsize=8, labelpad=1)
    more = [("wrong", _WRONG), ("correct", _RIGHT)]
    class_legend(figure, class_names, [truth, *predictions.values()], more)
    return figure


def _image_grid(rows: int, columns: int, shape: tuple[int, int]):
    height = 9 / columns * shape[0] / shape[1] + 0.17  # a line of text below each
    figure, axes = subplots(
        rows, columns, rows * height + 0.75, dpi=80, subplot_kw=dict(xticks=[], yticks=[])
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    return figure, axes
