"""Methods beside each other, in tables and figures: by seed, by class, by epoch, on images."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from patlib.data import SegmentationDataset
from patlib.metrics import class_groups
from patlib.plots.colors import METHODS, class_colors, label_colors
from patlib.study.comparison import (
    DATASET_LABELS,
    MODEL_LABELS,
    Difference,
    Run,
    by_place,
    load_runs,
    mean_iou,
    seeds_note,
    spread,
    summarize,
    to_do,
)

_STYLES = {label: (color, marker) for label, color, marker in METHODS.values()}
_LINES = ("-", "--", "-.", ":")
_WRONG, _RIGHT = "#1b1b1b", "#d9d9d9"


def _style(method: str) -> tuple[str, str]:
    """Colour and marker of a method; black dots for a label that is not one of the eight."""
    return _STYLES.get(method, ("#000000", "o"))


def html_table(name: str, header: Sequence, rows: Sequence[Sequence], note: str = "") -> str:
    """A table of cells that are HTML already. Its ``data-name`` is how tests find it.

    Args:
        name: of the table.
        header: the titles of the columns.
        rows: the cells.
        note: what stands below, such as :func:`patlib.study.comparison.seeds_note`.
    """

    def line(tag, row):
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in row) + "</tr>"

    body = "\n".join(line("td", row) for row in rows)
    body += f'\n<caption style="caption-side:bottom">{note}</caption>' if note else ""
    return (
        f'<table class="table" data-name="{name}" style="font-size:.85em">\n'
        f"{line('th', header)}\n{body}\n</table>"
    )


def small(figure, missing: tuple[str, str] | None = None, colors: int = 256):
    """A figure as PNG with few colours, for notebooks: label maps take half the bytes or less.

    Args:
        figure: None if there was nothing to draw.
        missing: what is printed then, from :func:`patlib.study.comparison.to_do`. The book makes a
            numbered figure of what a cell shows, not of what it prints.
        colors: at most so many.
    """
    from IPython.display import Image  # is there where notebooks are

    if figure is None:
        sentence, command = missing
        print(f"{textwrap.fill(sentence, 78)}:\n\n{command}")
        return None
    drawn, stored = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=figure.dpi)
    plt.close(figure)  # or the notebook would show it once more
    picture = PIL.Image.open(drawn).convert("RGB").quantize(colors, dither=PIL.Image.Dither.NONE)
    picture.save(stored, "png", optimize=True)
    return Image(stored.getvalue())


def columns_table(
    name: str, columns: Mapping[str, Mapping[str, str]], first: str = "loss", note: str = ""
) -> str:
    """A table with a row for each method: title of a column -> label of a method -> text.

    Rows and columns in which nothing was run are left out; a table of them is an empty string.

    Args:
        name, note: of :func:`html_table`.
        columns: the texts.
        first: title of the column of labels.
    """

    def any_run(texts):
        return any(text not in ("", "not run") for text in texts)

    columns = {title: column for title, column in columns.items() if any_run(column.values())}
    methods = dict.fromkeys(method for column in columns.values() for method in column)
    rows = [[method, *(c.get(method, "") for c in columns.values())] for method in methods]
    rows = [row for row in rows if any_run(row[1:])]
    return html_table(name, [first, *columns], rows, note) if rows else ""


def missing_html(missing: tuple[str, str]) -> str:
    """What :func:`patlib.study.comparison.to_do` says, as a paragraph."""
    sentence, command = missing
    return f"<p>{sentence}: <code>{command}</code></p>"


def grid_table(
    name: str,
    grid: Path,
    records: Path,
    metrics: Mapping[str, str],
    seeds: Sequence[int] | None = None,
) -> str:
    """The scores of a grid, a column for each place and score; how to run it if nobody has.

    Args:
        name: of the table.
        grid, records, seeds: of :func:`patlib.study.comparison.load_runs`.
        metrics: score -> its title.
    """
    columns, tables = {}, {}
    for place, methods in by_place(load_runs(grid, records, seeds)).items():
        members = [run for method in methods.values() for run in method]
        where = f"{place}, {MODEL_LABELS[place.model]}"
        for metric, title in metrics.items():
            rows = summarize(members, metric)
            columns[f"{where}: {title}"] = {row["method"]: spread(row) for row in rows}
        if any(row["n"] for row in rows):
            tables[where] = rows
    if not tables:
        return missing_html(to_do(grid, records))
    return columns_table(name, columns, note=seeds_note(tables))


def settings_table(name: str, rows: Sequence[dict]) -> str:
    """What was run: a column for each of the rows of :func:`patlib.study.comparison.describe`."""
    columns = {}
    for row in rows:
        settings = row["settings"]
        model = ", ".join(f"{k} {v}" for k, v in settings["model_params"].items() if v is not None)
        columns[f"{row['place']}, {MODEL_LABELS[settings['model']]}"] = {
            "images (train / validation / test)": " / ".join(map(str, row["images"].values()))
            if "images" in row
            else "",
            "size (H x W)": " x ".join(map(str, settings["image_size"])),
            "parameters of the network": model,
            "epochs": settings["epochs"],
            "batch": settings["batch_size"],
            "learning rate": f"{settings['learning_rate']:g}",
            "planned seeds": ", ".join(map(str, row["seeds"])),
            "seeds done": ", ".join(map(str, row["seeds_done"])) or "none",
            "runs done": f"{row['n']} of {row['planned']}",
            "median wall time": f"{row['minutes']:.0f} min, {', '.join(row['devices'])}"
            if "minutes" in row
            else "",
        }
    return columns_table(name, columns, first="")


def _recorded(methods: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """The runs with a record, of the methods that have one."""
    kept = {method: [run for run in runs if run.record] for method, runs in methods.items()}
    return {method: runs for method, runs in kept.items() if runs}


def cell_name(address: str) -> str:
    """The address of a number of the paper (study/paper.yaml) in words."""
    _, *which, dataset, metric = address.split(".")
    metric = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "dice_error": "Dice error"}[
        metric
    ]
    names = {loss: label for loss, (label, *_) in METHODS.items()} | MODEL_LABELS
    which = [names.get(key, f"T = {key}") for key in which]
    return f"{metric} of {', '.join(reversed(which))} on {DATASET_LABELS[dataset]}"


def plot_scores(tables: Mapping[str, Sequence[dict]], xlabel: str = "test mIoU (%)"):
    """Every seed a small mark, the mean a large one; the dashed line is the mean of the first row.

    All panels span the same number of points, so that a distance means the same in each.

    Args:
        tables: title of a panel -> rows of :func:`patlib.study.comparison.summarize`, the same
            methods in each; those without a record stay empty, a panel of them is left out.

    Returns:
        The figure, or None if nothing was run.
    """
    tables = {title: rows for title, rows in tables.items() if any(row["n"] for row in rows)}
    if not tables:
        return None
    methods = [row["method"] for row in next(iter(tables.values()))]
    figure, axes = plt.subplots(
        1,
        len(tables),
        figsize=(9, 0.34 * len(methods) + 1.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    scores = {
        title: 100 * np.concatenate([list(row["scores"].values()) for row in rows])
        for title, rows in tables.items()
    }
    half = 0.54 * max(1, *map(np.ptp, scores.values()))
    for axis, (title, rows) in zip(axes[0], tables.items(), strict=True):
        middle = (scores[title].min() + scores[title].max()) / 2
        axis.set_xlim(middle - half, middle + half)
        if rows[0]["n"]:
            axis.axvline(100 * rows[0]["mean"], color="black", linestyle="--", linewidth=0.8)
        for position, row in enumerate(rows):
            color, marker = _style(row["method"])
            values = 100 * np.array(list(row["scores"].values()))
            if row["n"] > 1:  # seeds above their mean, so that neither hides the other
                seeds = dict(s=18, facecolors="none", edgecolors=color, linewidths=1, marker=marker)
                axis.scatter(values, np.full(len(values), position - 0.22), **seeds)
            if row["n"]:
                axis.scatter([values.mean()], [position + 0.12], s=60, color=color, marker=marker)
        axis.set(title=title, xlabel=xlabel, yticks=range(len(methods)), yticklabels=methods)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.6)
    return figure


def plot_differences(tables: Mapping[str, Mapping[str, Sequence[Difference]]]):
    """Differences with their intervals: a row of panels for each data set, a column each score.

    Filled: called higher or lower (:attr:`Difference.judged`); open: not. Small ticks above: the
    single seeds.

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
    figure, axes = plt.subplots(
        len(tables),
        len(panels),
        figsize=(9, 0.27 * sum(heights) + 0.75 * len(tables)),
        height_ratios=[height + 0.5 for height in heights],
        sharey="row",
        sharex="col",
        squeeze=False,
        layout="constrained",
    )
    for row, (title, columns) in zip(axes, tables.items(), strict=True):
        for axis, panel in zip(row, panels, strict=True):
            differences = columns[panel]
            for position, difference in enumerate(differences):
                _plot_difference(axis, position, difference)
            axis.axvline(0, color="black", linewidth=0.8)
            axis.grid(axis="x", alpha=0.3)
        names = [difference.method for difference in columns[panels[0]]]
        title = title.replace(" ", "\n", 1)
        row[0].set(yticks=range(len(names)), yticklabels=names, ylabel=title)
        row[0].set_ylim(len(names) - 0.5, -0.7)
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.set_title(panel)
    reference = next(d.reference for row in tables.values() for p in row.values() for d in p)
    figure.supxlabel(f"difference from {reference} in mean IoU (percentage points)", fontsize=10)
    return figure


def _plot_difference(axis, position: int, difference: Difference) -> None:
    color, _ = _style(difference.method)
    low, middle, high = (100 * v for v in (difference.low, difference.mean, difference.high))
    axis.hlines(position, low, high, color=color, linewidth=1.8)
    face = color if difference.judged else "white"
    axis.plot(middle, position, "o", markersize=6, color=color, markerfacecolor=face)
    if len(difference.by_seed) > 1:
        values = 100 * np.array(list(difference.by_seed.values()))
        axis.plot(values, np.full(len(values), position - 0.33), "|", color=color, markersize=4)


def plot_class_iou(methods: Mapping[str, Sequence[Run]]):
    """Test IoU of every class and method, the mean over seeds; common classes left, rare right.

    Args:
        methods: label -> runs, all of one data set; those without a record are left out.

    Returns:
        The figure, or None if nothing was run.
    """
    methods = _recorded(methods)
    if not methods:
        return None
    result = next(iter(methods.values()))[0].record.result
    groups = class_groups(result["class_counts"])
    order = [c for classes in groups.values() for c in classes]
    shares = 100 * np.array(result["class_counts"]) / sum(result["class_counts"])
    iou = 100 * np.array(
        [np.mean([run.score("iou") for run in runs], axis=0)[order] for runs in methods.values()]
    )
    figure, axis = plt.subplots(
        figsize=(9, 0.34 * len(methods) + 1.6 if len(order) > 3 else 4), layout="constrained"
    )
    image = axis.imshow(iou, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for y, x in np.ndindex(iou.shape):
        text = "-" if np.isnan(iou[y, x]) else f"{iou[y, x]:.0f}"
        color = "white" if iou[y, x] < 55 else "black"
        axis.text(x, y, text, ha="center", va="center", color=color, fontsize=9)
    axis.set_yticks(range(len(methods)), methods)
    names = [f"{result['class_names'][c]}\n{shares[c]:.2g} %" for c in order]
    axis.set_xticks(range(len(order)), names, rotation=40 if len(order) > 3 else 0, ha="center")
    axis.set_xlabel("class, and its share of the training pixels")
    edge = -0.5
    for group, classes in groups.items():
        axis.text(edge + len(classes) / 2, -0.6, group, ha="center", va="bottom", fontsize=10)
        edge += len(classes)
        axis.axvline(edge, color="white", linewidth=2.5)
    figure.colorbar(image, label="test IoU (%)", pad=0.01)
    return figure


def plot_validation(panels: Mapping[str, Mapping[str, Sequence[Run]]], ncols: int = 3):
    """Validation mIoU by epoch: the mean over seeds, and a band from the lowest to the highest.

    Args:
        panels: title -> label of a method -> its runs; those without a record are left out.
        ncols: panels in a row.

    Returns:
        The figure, or None if nothing was run.
    """
    panels = {title: methods for title, m in panels.items() if (methods := _recorded(m))}
    if not panels:
        return None
    ncols = min(ncols, len(panels))
    figure, axes = plt.subplots(
        -(-len(panels) // ncols), ncols, figsize=(9, 3.6), squeeze=False, layout="constrained"
    )
    entries = {}
    for axis, (title, methods) in zip(axes.flat, panels.items(), strict=False):
        for number, (method, runs) in enumerate(methods.items()):
            color, marker = _style(method)
            if method not in _STYLES:
                color = plt.get_cmap("cividis")(number / max(1, len(methods) - 1))
            epochs = runs[0].record.result["curves"]["epoch"]
            curves = 100 * np.array(
                [run.record.result["curves"]["validation_miou"] for run in runs], dtype=float
            )
            style = dict(color=color, marker=marker, linestyle=_LINES[number % len(_LINES)])
            every = (number * max(1, len(epochs) // 8) // 8, max(1, len(epochs) // 6))
            axis.plot(epochs, curves.mean(0), linewidth=1.3, markevery=every, markersize=5, **style)
            if len(runs) > 1:
                axis.fill_between(
                    epochs, curves.min(0), curves.max(0), color=color, alpha=0.13, linewidth=0
                )
            entries.setdefault(method, Line2D([], [], label=method, **style))
        axis.set(title=title, xlabel="epoch", ylabel="validation mIoU (%)")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.legend(handles=entries.values(), loc="outside lower center", ncols=min(len(entries), 8))
    return figure


def plot_runs(
    methods: Mapping[str, Sequence[Run]],
    dataset: SegmentationDataset | None = None,
    columns: Sequence[int] = range(6),
):
    """What the first run of each method predicts on some of the test images that it kept.

    Args:
        methods: label -> runs, all of one data set; those without a record are left out.
        dataset: its test part at the size of the runs, for images, truth and errors
            (:func:`plot_predictions`); without it the label maps alone, each with its pixel
            accuracy and mean IoU in percent.
        columns: which of the images kept.

    Returns:
        The figure, or None if nothing was run.
    """
    methods = _recorded(methods)
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
    notes = {method: [_note(images["counts"][i]) for i in shown] for method, images in kept.items()}
    return plot_label_maps(maps, notes, class_names)


def _note(counts: np.ndarray) -> str:
    found, true, _ = counts.astype(float)
    return f"{100 * found.sum() / max(1, true.sum()):.0f} / {100 * mean_iou(counts):.0f}"


def plot_predictions(
    images: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[np.ndarray]],
    class_names: Sequence[str],
):
    """A pair of columns for each image: image and truth, then every method's labels and errors.

    Errors are dark, correct pixels grey, ignored ones white.

    Args:
        images: RGB (H, W, 3) each.
        truth: labels (H, W) each, 255 for ignored pixels.
        predictions: label of a method -> label maps (H, W), one per image.
        class_names: names of the classes 0 ... L-1.
    """
    figure, axes = _grid(1 + len(predictions), 2 * len(images), truth[0].shape)
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
            right.imshow(_errors(labels, mask), interpolation="nearest")
            valid = mask != 255
            score = 100 * np.mean(labels[valid] == mask[valid]) if valid.any() else np.nan
            right.set_xlabel(f"{score:.0f} % correct", fontsize=8, labelpad=1)
    errors = [("wrong", _WRONG), ("correct", _RIGHT)]
    _legend(figure, class_names, _all(truth, predictions), errors)
    return figure


def plot_label_maps(
    predictions: Mapping[str, Sequence[np.ndarray]],
    notes: Mapping[str, Sequence[str]],
    class_names: Sequence[str],
):
    """Label maps alone: a row for each method, a column for each image.

    Args:
        predictions: label of a method -> label maps (H, W), one per image.
        notes: the same -> a few words below each of them.
        class_names: names of the classes 0 ... L-1.
    """
    maps = next(iter(predictions.values()))
    figure, axes = _grid(len(predictions), len(maps), maps[0].shape)
    for row, (method, maps) in enumerate(predictions.items()):
        axes[row, 0].set_ylabel(method)
        for column, (labels, note) in enumerate(zip(maps, notes[method], strict=True)):
            axes[row, column].imshow(label_colors(labels, class_names), interpolation="nearest")
            axes[row, column].set_xlabel(note, fontsize=8, labelpad=1)
    _legend(figure, class_names, _all([], predictions))
    return figure


def _grid(rows: int, columns: int, shape: tuple[int, int]):
    height = 9 / columns * shape[0] / shape[1] + 0.17  # a line of text below each
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(9, rows * height + 0.75),
        squeeze=False,
        layout="constrained",
        dpi=80,
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure, axes


def _errors(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) of the pixels that are wrong, correct and ignored."""
    colors = np.array(
        [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (_RIGHT, _WRONG, "#ffffff")], np.uint8
    )
    return colors[np.where(truth == 255, 2, labels != truth)]


def _all(truth: Sequence[np.ndarray], predictions: Mapping) -> np.ndarray:
    """The labels that are to be seen anywhere."""
    maps = [*truth, *(labels for maps in predictions.values() for labels in maps)]
    return np.unique(np.concatenate([np.ravel(labels) for labels in maps]))


def _legend(figure, class_names: Sequence[str], shown, more: Sequence[tuple] = ()) -> None:
    colors = [*zip(class_names, class_colors(class_names), strict=True)]
    entries = [entry for c, entry in enumerate(colors) if c in shown]
    if 255 in shown:
        entries.append(("ignored", "#ffffff"))
    handles = [
        Patch(facecolor=color, edgecolor="black", linewidth=0.5, label=name)
        for name, color in [*entries, *more]
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 7), fontsize=9
    )


def plot_temperatures(panels: Mapping[str, Mapping[float, Mapping[str, Sequence[float]]]]):
    """Scores over the temperature of PAT: every seed a small mark, lines through the means.

    Args:
        panels: title -> temperature -> label of a score -> its value for each seed, in percent.
            One with fewer than two temperatures is left out.

    Returns:
        The figure, or None if no panel is left.
    """
    panels = {title: scores for title, scores in panels.items() if len(scores) > 1}
    if not panels:
        return None
    figure, axes = plt.subplots(
        1, len(panels), figsize=(9, 3.2), squeeze=False, layout="constrained"
    )
    styles = (("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#009e73", "^", ":"))
    for axis, (title, scores) in zip(axes[0], panels.items(), strict=True):
        labels = list(dict.fromkeys(label for values in scores.values() for label in values))
        for label, (color, marker, line) in zip(labels, styles, strict=False):
            seeds = {
                t: np.asarray(values[label]) for t, values in scores.items() if label in values
            }
            means = [values.mean() for values in seeds.values()]
            axis.plot(list(seeds), means, color=color, marker=marker, linestyle=line, label=label)
            for temperature, values in seeds.items():
                if len(values) > 1:
                    marks = dict(s=14, facecolors="none", edgecolors=color, marker=marker)
                    axis.scatter(np.full(len(values), temperature), values, **marks)
        axis.set(title=title, xscale="log", xlabel="temperature T (log scale)", ylabel="score (%)")
        axis.set_xticks(list(scores), [f"{t:g}" for t in scores])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(loc="best", fontsize=9)
    return figure


def plot_exponents(
    series: Mapping[str, Mapping[float, Mapping[str, Sequence[float]]]],
    levels: Mapping[str, Mapping[str, float]],
    titles: Mapping[str, str],
):
    """Scores over the exponent of the class size, one panel for each score.

    Args:
        series: label of a line -> exponent -> score -> its value for each seed, in percent. One
            with fewer than two exponents is left out.
        levels: label of a dashed horizontal line -> score -> value in percent.
        titles: score -> title of its panel.

    Returns:
        The figure, or None if no line is left.
    """
    series = {label: points for label, points in series.items() if len(points) > 1}
    if not series:
        return None
    figure, axes = plt.subplots(
        1, len(titles), figsize=(9, 3.4), squeeze=False, layout="constrained"
    )
    styles = (("#0072b2", "o", "-"), ("#d55e00", "s", "-."))
    for axis, (metric, title) in zip(axes[0], titles.items(), strict=True):
        for (label, points), (color, marker, line) in zip(series.items(), styles, strict=False):
            seeds = {exponent: np.asarray(scores[metric]) for exponent, scores in points.items()}
            means = [values.mean() for values in seeds.values()]
            axis.plot(list(seeds), means, color=color, marker=marker, linestyle=line, label=label)
            for exponent, values in seeds.items():
                if len(values) > 1:
                    marks = dict(s=14, facecolors="none", edgecolors=color, marker=marker)
                    axis.scatter(np.full(len(values), exponent), values, **marks)
        for number, (label, level) in enumerate(levels.items()):
            line = _LINES[1 + 2 * (number % 2)]
            axis.axhline(level[metric], color="black", linestyle=line, linewidth=1, label=label)
        axis.set(title=title, xlabel="exponent a in 1 / S^a", ylabel="score (%)")
        axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure
