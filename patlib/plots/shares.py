"""How common and how large classes are."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from patlib.metrics import class_groups
from patlib.plots.colors import GROUP_COLORS, class_colors
from patlib.plots.panels import subplots


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
    figure, axes = subplots(
        len(splits),
        2,
        0.26 * sum(lengths) + 0.5 * len(splits) + 0.5,
        height_ratios=lengths,
        sharex="col",
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
    low, high = axes[-1, 1].get_xlim()
    steps = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)  # fewer, where they would overlap
    axes[-1, 1].xaxis.set_major_locator(LogLocator(subs=steps))
    axes[-1, 1].xaxis.set_major_formatter("{x:,.0f}")
    axes[-1, 1].xaxis.set_minor_formatter(NullFormatter())
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
    colors = _colors(classes, order)
    # An absent class has no bar: a log scale has no zero.
    widths = np.where(shares > 0, shares, np.nan)[order]
    bars = axis.barh(range(len(order)), widths, color=colors, edgecolor="black", linewidth=0.5)
    axis.bar_label(bars, [_percent(share) for share in shares[order]], padding=3, fontsize=8)
    axis.set_yticks(range(len(order)), [classes[c]["name"] for c in order])


def _colors(classes: Sequence[Mapping], order: list[int]) -> list[str]:
    colors = class_colors([entry["name"] for entry in classes])
    return [colors[c] for c in order]


def _percent(share: float) -> str:
    """Two digits that count: 33 %, 6.1 %, 0.67 %."""
    return f"{share:.{0 if share >= 10 else 1 if share >= 1 else 2}f} %"


def _plot_sizes(axis, split: Mapping, order: list[int]) -> None:
    colors = _colors(split["classes"], order)
    for row, (c, color) in enumerate(zip(order, colors, strict=True)):
        if quantiles := split["classes"][c]["size_quantiles"]:
            low, first, median, third, high = quantiles
            axis.hlines(row, low, high, color="black", linewidth=1)
            frame = dict(height=0.6, color=color, edgecolor="black", linewidth=0.5)
            axis.barh(row, third - first, left=first, **frame)
            axis.plot(median, row, "o", color="white", markeredgecolor="black", markersize=5)
    presence = [100 * split["classes"][c]["images"] / split["images"] for c in order]
    axis.yaxis.tick_right()
    axis.set_yticks(range(len(order)), [f"{share:.0f} %" for share in presence])
