"""The figures of the notebooks. Every function returns a matplotlib figure."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from patlib.metrics import class_groups
from patlib.records import RunRecord

# A class has the colour of its number, in every figure. Neighbours differ in lightness as well as
# in hue, so that they can be told apart in grey and by colour-blind readers.
CLASS_COLORS = (
    *("#56b4e9", "#7a3b10", "#bdbdbd", "#0b6e4f", "#f0e442", "#332288", "#ee8866", "#882255"),
    *("#a6dba0", "#1b1b1b", "#f7b6d2", "#005f9e", "#d9c27e", "#a6197c", "#8dd3c7", "#5c5c5c"),
    *("#fff7bc", "#7f2704", "#c2a5cf", "#00441b"),
)
IGNORED_COLOR = "#ffffff"
GROUP_COLORS = {"head": "#332288", "mid": "#44aa99", "tail": "#ee8866"}


def class_color(label: int) -> str:
    """The colour of a class; beyond twenty classes they repeat."""
    return CLASS_COLORS[label % len(CLASS_COLORS)]


def label_colors(labels: np.ndarray) -> np.ndarray:
    """Label map (H, W) to RGB uint8 (H, W, 3): the colours of the classes, ignored pixels white."""
    lookup = np.full((256, 3), 255, np.uint8)
    for label in range(255):
        lookup[label] = np.round(255 * np.array(to_rgb(class_color(label))))
    lookup[255] = np.round(255 * np.array(to_rgb(IGNORED_COLOR)))
    return lookup[np.asarray(labels, np.uint8)]


def plot_panels(
    images: Sequence[np.ndarray],
    label_maps: dict[str, Sequence[np.ndarray]],
    class_names: Sequence[str],
):
    """Images in the first row, one more row for each set of label maps, and the legend.

    Args:
        images: RGB, (H, W, 3) each, uint8 or float in [0, 1].
        label_maps: row title -> label maps (H, W), one per image.
        class_names: names of the classes 0 ... L-1.
    """
    rows, columns = 1 + len(label_maps), len(images)
    height, width = np.asarray(images[0]).shape[:2]
    cell = 9.0 / columns
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(9.0, rows * cell * height / width + 0.75),
        squeeze=False,
        layout="constrained",
        dpi=80,  # photographs make large files
    )
    for column, image in enumerate(images):
        axes[0, column].imshow(image)
    for row, maps in enumerate(label_maps.values(), start=1):
        for column, labels in enumerate(maps):
            axes[row, column].imshow(label_colors(labels), interpolation="nearest")
    for row, title in enumerate(["image", *label_maps]):
        axes[row, 0].set_ylabel(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    shown = np.unique(np.concatenate([np.ravel(m) for maps in label_maps.values() for m in maps]))
    entries = [
        Patch(facecolor=class_color(c), edgecolor="black", linewidth=0.5, label=name)
        for c, name in enumerate(class_names)
        if c in shown
    ]
    if 255 in shown:
        entries.append(Patch(facecolor="white", edgecolor="black", linewidth=0.5, label="ignored"))
    figure.legend(handles=entries, loc="outside lower center", ncols=min(len(entries), 7))
    return figure


def plot_class_shares(splits: Mapping[str, Mapping]):
    """How common and how large the classes are: one row of panels for each data set.

    Left the share of each class in the valid pixels; right the pixels that it covers in one image,
    over the images that contain it (dot: median, box: 25 to 75 %, line: 5 to 95 %), and the share
    of these images. Classes from common to rare; the bands behind them are head, mid and tail.

    Args:
        splits: title -> a split as ``study/datasets.py`` counts it: ``images``, and ``classes``
            with ``name``, ``pixels``, ``images`` (that contain the class) and ``size_quantiles``
            (5, 25, 50, 75 and 95 %, in pixels; None for a class that is absent).

    Raises:
        ValueError: a split has no valid pixel.
    """
    lengths = [len(split["classes"]) for split in splits.values()]
    figure, axes = plt.subplots(
        len(splits),
        2,
        figsize=(9.0, 0.26 * sum(lengths) + 0.5 * len(splits) + 0.5),
        height_ratios=lengths,
        squeeze=False,
        sharex="col",
        layout="constrained",
    )
    smallest = 100.0
    for (title, split), (left, right) in zip(splits.items(), axes, strict=True):
        counts = np.array([entry["pixels"] for entry in split["classes"]])
        if counts.sum() == 0:
            raise ValueError(f"{title}: there is no valid pixel, hence no share")
        shares = 100 * counts / counts.sum()
        smallest = min(smallest, shares[shares > 0].min())
        groups = class_groups(counts)
        order = [c for classes in groups.values() for c in classes]
        _bands(left, right, groups)
        _plot_shares(left, split["classes"], shares, order)
        _plot_sizes(right, split, order)
        left.set_title(f"{title}: {split['images']} images", loc="left")
    axes[0, 1].set_title("images with the class", loc="right", fontsize="medium")
    axes[-1, 0].set(xlabel="share of valid pixels (%, log scale)", xscale="log")
    axes[-1, 0].set_xlim(smallest / 3, 700)  # room for the numbers and the names of the groups
    axes[-1, 0].set_xticks([x for x in (0.01, 0.1, 1, 10, 100) if x > smallest / 3])
    axes[-1, 0].xaxis.set_major_formatter("{x:g}")
    axes[-1, 1].set(xlabel="size of the class in one image (pixels, log scale)", xscale="log")
    return figure


def _bands(left, right, groups: dict[str, list[int]]) -> None:
    """Head, mid and tail behind the rows 0 ... L-1, named at the right end of the left panel."""
    top = -0.5
    for group, classes in groups.items():
        bottom = top + len(classes)
        for axis in (left, right):
            axis.axhspan(top, bottom, color=GROUP_COLORS[group], alpha=0.13, linewidth=0)
        if classes:
            place = dict(transform=left.get_yaxis_transform(), ha="right", va="center")
            left.text(0.98, (top + bottom) / 2, group, fontsize=9, **place)
        top = bottom
    for axis in (left, right):
        axis.set_ylim(top, -0.5)


def _plot_shares(axis, classes: Sequence[Mapping], shares: np.ndarray, order: list[int]) -> None:
    colors = [class_color(c) for c in order]
    # An absent class has no bar: a log scale has no zero.
    widths = np.where(shares > 0, shares, np.nan)[order]
    bars = axis.barh(range(len(order)), widths, color=colors, edgecolor="black", linewidth=0.5)
    axis.bar_label(bars, [_percent(share) for share in shares[order]], padding=3, fontsize=8)
    axis.set_yticks(range(len(order)), [classes[c]["name"] for c in order])


def _percent(share: float) -> str:
    """Two digits that count: 33 %, 6.1 %, 0.67 %."""
    return f"{share:.{0 if share >= 10 else 1 if share >= 1 else 2}f} %"


def _plot_sizes(axis, split: Mapping, order: list[int]) -> None:
    for row, c in enumerate(order):
        if quantiles := split["classes"][c]["size_quantiles"]:
            low, first, median, third, high = quantiles
            axis.hlines(row, low, high, color="black", linewidth=1)
            color = class_color(c)
            frame = dict(height=0.6, color=color, edgecolor="black", linewidth=0.5)
            axis.barh(row, third - first, left=first, **frame)
            axis.plot(median, row, "o", color="white", markeredgecolor="black", markersize=5)
    presence = [100 * split["classes"][c]["images"] / split["images"] for c in order]
    axis.yaxis.tick_right()
    axis.set_yticks(range(len(order)), [f"{share:.0f} %" for share in presence])


def plot_curves(record: RunRecord):
    """Training loss and validation scores by epoch."""
    curves = record.result["curves"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot(curves["epoch"], curves["train_loss"], color="black")
    left.set(xlabel="epoch", ylabel=f"training loss ({record.config['loss']})")
    right.plot(curves["epoch"], curves["validation_miou"], color="#0072b2", label="mIoU")
    right.plot(
        curves["epoch"],
        curves["validation_pixel_accuracy"],
        color="#d55e00",
        linestyle="--",
        label="pixel accuracy",
    )
    right.set(xlabel="epoch", ylabel="validation score (0 to 1)", ylim=(0, 1))
    right.legend(loc="lower right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_iou(record: RunRecord):
    """Test IoU of each class, common classes first, beside its share of the training pixels."""
    counts = np.array(record.result["class_counts"], dtype=float)
    groups = class_groups(counts)
    order = [c for classes in groups.values() for c in classes]
    names = [record.result["class_names"][c] for c in order]
    colors = [GROUP_COLORS[group] for group, classes in groups.items() for _ in classes]
    hatches = [
        h for h, classes in zip(("", "//", "xx"), groups.values(), strict=True) for _ in classes
    ]

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 0.32 * len(order) + 1.2), sharey=True, layout="constrained"
    )
    shares = 100 * counts / counts.sum()
    left.barh(names, shares[order], color=colors, hatch=hatches, edgecolor="white", linewidth=0)
    positive = shares[shares > 0]
    left.set(
        xscale="log",
        xlim=(positive.min() / 2, 100),
        xlabel="share of training pixels (%, log scale)",
    )
    iou = np.array(record.result["test"]["iou"])[order]
    bars = right.barh(names, iou, color=colors, hatch=hatches, edgecolor="white", linewidth=0)
    right.bar_label(
        bars, labels=["absent" if np.isnan(v) else f"{v:.2f}" for v in iou], padding=3, fontsize=8
    )
    right.set(xlim=(0, 1.1), xlabel="test IoU (0 to 1)")
    left.invert_yaxis()
    handles = [
        Patch(facecolor=color, hatch=hatch, edgecolor="white", label=group)
        for (group, color), hatch in zip(GROUP_COLORS.items(), ("", "//", "xx"), strict=True)
    ]
    right.legend(handles=handles, loc="lower right")
    return figure
