"""How unequal the classes of an image are, and what weights 1/S make of it.

Everything here is computed from the sizes S of the classes in each image, an array (N, L): the
weight 1/S^a of a pixel depends on nothing else.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import PercentFormatter

from patlib.losses import LOSSES
from patlib.metrics import class_groups
from patlib.plots.colors import GROUP_COLORS, class_colors, label_colors
from patlib.plots.panels import subplots
from patlib.records import RunRecord, read_images

# Line styles of the weights 1/S^a, by a.
STYLES = {0: (LOSSES["ce"].color, ":"), 0.5: ("#005f9e", "--"), 1: (LOSSES["pat"].color, "-")}


class Recorded(NamedTuple):
    """The sizes of the classes in the test images of a recorded run.

    Attributes:
        class_names: names of the classes 0 ... L-1.
        image_size: (H, W) in pixels.
        sizes: valid pixels of each class in each image, int (N, L).
    """

    class_names: list[str]
    image_size: tuple[int, int]
    sizes: np.ndarray


def mask_sizes(masks: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """S: the pixels of each class in each mask (H, W), int64 (N, L); 255 is not counted."""
    return np.array([np.bincount(np.ravel(m), minlength=256)[:num_classes] for m in masks])


def recorded_sizes(folder: str | Path) -> dict[str, Recorded]:
    """What recorded runs say of the test images of real data: data set -> sizes.

    A run leaves the counts of its test images beside its record. One run for each data set is
    read, the first in the order of the names that leaves void out; none where there is none.
    """
    found: dict[str, Recorded] = {}
    for path in sorted(Path(folder).glob("*.npz")):
        dataset = path.name.split("-")[0]
        if dataset in found or dataset == "synthetic":
            continue
        record = RunRecord.load(path.with_suffix(".json"))
        if record.config["void"] == "ignore" and record.config["split_scheme"] == "official":
            names, image_size = record.result["class_names"], record.config["image_size"]
            counts = read_images(path, record.images_sha256, ["counts"])["counts"]
            found[dataset] = Recorded(names, tuple(image_size), counts[:, 1])
    return found


def size_ratios(sizes: np.ndarray) -> np.ndarray:
    """Largest over smallest class in each image, of those that are there; NaN if none is."""
    sizes = np.asarray(sizes, float)
    present = np.where(sizes > 0, sizes, np.nan)
    ratios = np.full(len(sizes), np.nan)
    some = (sizes > 0).any(1)
    ratios[some] = np.nanmax(present[some], 1) / np.nanmin(present[some], 1)
    return ratios


def describe_images(sizes: np.ndarray) -> pd.DataFrame:
    """A row for each image with a valid pixel.

    Columns ``classes`` (in it), ``two`` (share of the two largest), ``smallest`` (share of the
    smallest), ``pixels`` (of the smallest) and ``ratio`` (:func:`size_ratios`).
    """
    sizes = sizes[sizes.any(1)]
    total = sizes.sum(1)
    smallest = np.where(sizes > 0, sizes, sizes.max() + 1).min(1)
    return pd.DataFrame(
        dict(
            classes=(sizes > 0).sum(1),
            two=np.sort(sizes, 1)[:, -2:].sum(1) / total,
            smallest=smallest / total,
            pixels=smallest,
            ratio=size_ratios(sizes),
        )
    )


def weight_shares(sizes: np.ndarray, exponent: float) -> np.ndarray:
    """The share of each class in the weights 1/S^a of all pixels, (L,).

    a = 0 gives its share of the pixels, a = 1 of the pairs of an image and a class in it.
    """
    sizes = np.asarray(sizes, float)
    weights = np.where(sizes > 0, sizes, 1) ** -exponent * sizes
    return weights.sum(0) / weights.sum()


def effective_pixels(sizes: np.ndarray, exponent: float) -> float:
    """(Σ w)² / Σ w² of the weights w = 1/S^a of all pixels (Kish's effective sample size).

    So many pixels of equal weight average as well as these: all of them for a = 0.
    """
    sizes = np.asarray(sizes, float)
    sizes = sizes[sizes > 0]
    return float((sizes ** (1 - exponent)).sum() ** 2 / (sizes ** (1 - 2 * exponent)).sum())


def concentration(sizes: np.ndarray, exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """Which share of the weights 1/S^a the heaviest pixels carry: two arrays from 0 to 1.

    Returns:
        Shares of the pixels, the heaviest first, and the shares of the weights that they carry.
    """
    sizes = np.sort(np.asarray(sizes, float)[np.asarray(sizes) > 0])
    carried = np.cumsum(sizes ** (1 - exponent))
    pixels = np.cumsum(sizes)
    return np.append(0, pixels / pixels[-1]), np.append(0, carried / carried[-1])


def half_of_the_weight(sizes: np.ndarray, exponent: float) -> float:
    """The share of the pixels, the heaviest ones, that carry half of the weights 1/S^a."""
    pixels, carried = concentration(sizes, exponent)
    return float(np.interp(0.5, carried, pixels))


def plot_mask_sizes(images: Mapping[str, np.ndarray], class_names: Sequence[str]):
    """Masks of single images and the pixels of each class in them, one row for each: Fig. 2.

    Args:
        images: title -> mask (H, W), 255 for ignored pixels.
        class_names: names of the classes.
    """
    figure, axes = subplots(
        len(images),
        2,
        len(images) * max(0.21 * len(class_names) + 0.6, 1.8) + 0.3,
        width_ratios=(1, 2),
        sharex="col",
    )
    colors = class_colors(class_names)
    every = mask_sizes(images.values(), len(class_names))
    for (left, right), (title, mask), sizes in zip(axes, images.items(), every, strict=True):
        left.imshow(label_colors(mask, class_names), interpolation="nearest")
        left.set(xticks=[], yticks=[])
        bars = right.barh(class_names, sizes, color=colors, edgecolor="black", linewidth=0.5)
        right.bar_label(bars, [str(s) if s else "absent" for s in sizes], padding=3, fontsize=9)
        right.set_title(title, loc="left", fontsize="medium")
        right.margins(x=0.12)
        right.invert_yaxis()
    axes[-1, 1].set_xlabel("pixels")
    return figure


def plot_presence_and_size(splits: Mapping[str, Mapping]):
    """In how many images a class is, and how much of such an image it covers, one panel a data set.

    The product of the two is the share of the class in all pixels (lines).

    Args:
        splits: title -> a split as `study.datasets.count` counts it: ``images``, and ``classes``
            with ``name``, ``pixels`` and ``images`` (that contain the class).
    """
    rows = -(-len(splits) // 2)
    figure, axes = subplots(rows, 2, 3.7 * rows, 9.4, sharex=True, sharey=True)
    for axis, (title, split) in zip(axes.flat, splits.items(), strict=False):
        names, presence, cover = presence_and_size(split)
        colors = class_colors(names)
        points = [
            (100 * x, 100 * y, name, color)
            for x, y, name, color in zip(presence, cover, names, colors, strict=True)
            if x > 0  # a log scale has no zero
        ]
        for x, y, name, color in points:
            axis.plot(x, y, "o", color=color, markeredgecolor="black", markersize=7)
            # A name goes to the left of its point, unless it would lie on another point there.
            reach = x * np.exp(-0.17 - 0.064 * len(name))
            hidden = any(
                reach < x_ <= x and 0.8 < y_ / y < 1.25 for x_, y_, n, _ in points if n != name
            )
            right = x < 30 or hidden
            axis.annotate(
                name,
                (x, y),
                xytext=(6 if right else -6, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=9,
            )
        axis.set_title(title, loc="left", fontsize="medium")
        axis.set_xlabel("images that contain the class (%)")
        axis.set_ylabel("pixels of such an image (%)")
        axis.label_outer()
    first, shown = axes[0, 0], axes.flat[: len(splits)]
    left = min(axis.dataLim.x0 for axis in shown) / 1.6
    bottom = min(axis.dataLim.y0 for axis in shown) / 1.6
    first.set(xscale="log", yscale="log", xlim=(left, 230), ylim=(bottom, 130))
    first.set_xticks([t for t in (0.1, 0.3, 1, 3, 10, 30, 100) if t > left])
    first.set_yticks([t for t in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if t > bottom])
    for axis in (first.xaxis, first.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    for axis in shown:
        line = np.array([left, 230])
        for share in (0.01, 0.1, 1, 10):
            axis.plot(line, 100 * share / line, color="#999999", linestyle=":", linewidth=1)
            if bottom * 1.1 < 100 * share / 200 < 100:
                axis.text(
                    225, 100 * share / 200, f"{share:g} %", ha="right", color="#555555", fontsize=8
                )
    for axis in axes.flat[len(splits) :]:
        axis.set_visible(False)
    return figure


def presence_and_size(split: Mapping) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Of each class: its name, the share of the images it is in, its share of the pixels there.

    The product of the two, over all classes, is proportional to the share of the class.

    Args:
        split: as in `plot_presence_and_size`. All its images have the same size.
    """
    classes = split["classes"]
    pixels = np.array([entry["pixels"] for entry in classes], float)
    images = np.array([entry["images"] for entry in classes], float)
    every = pixels.sum() + split["ignored"]["pixels"]
    cover = pixels / np.maximum(images, 1) / (every / split["images"])
    return [entry["name"] for entry in classes], images / split["images"], cover


def plot_weight_shares(splits: Mapping[str, Mapping]):
    """The share of each class in the loss, by weights of 1 (dots) and of 1/S (stars).

    Args:
        splits: as in `plot_presence_and_size`; one panel for each.
    """
    figure, axes = subplots(1, len(splits), 4.4, 9.4)
    for axis, (title, split) in zip(axes[0], splits.items(), strict=True):
        names, presence, cover = presence_and_size(split)
        pixels = presence * cover
        order = [c for group in class_groups(pixels).values() for c in group]
        before, after = (pixels / pixels.sum())[order], (presence / presence.sum())[order]
        rows = range(len(order))
        top = -0.5
        for group, classes in class_groups(pixels).items():
            axis.axhspan(top, top + len(classes), color=GROUP_COLORS[group], alpha=0.13, lw=0)
            top += len(classes)
        axis.hlines(rows, 100 * before, 100 * after, color="#767676", linewidth=1)
        axis.plot(100 * before, rows, "o", color=LOSSES["ce"].color, label="weight 1 (CE)")
        axis.plot(100 * after, rows, "*", color=LOSSES["pat"].color, markersize=11, label="1/S")
        axis.axvline(100 / len(order), color="black", linestyle=":", linewidth=1)
        axis.set_yticks(rows, [names[c] for c in order])
        axis.set(xscale="log", xlabel="share of the weight (%)", ylim=(len(order) - 0.5, -0.5))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        ticks = [t for t in (0.1, 0.3, 1, 3, 10, 30) if t >= 60 * min(before.min(), after.min())]
        axis.set_xticks(ticks)
        axis.set_title(title, loc="left", fontsize="medium")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def plot_size_ratios(sizes: Mapping[str, np.ndarray], marked: tuple[float, float] | None = None):
    """Cumulative distribution of the ratio of the largest to the smallest class of an image.

    Args:
        sizes: title -> sizes (N, L), at most five.
        marked: two values of x between which to shade.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    colors = ("#1b1b1b", "#cc3311", "#005f9e", "#999933", "#767676")
    dashes = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
    if len(sizes) > len(colors):
        raise ValueError(f"sizes: at most {len(colors)} curves, got {len(sizes)}")
    for (title, of), color, linestyle in zip(sizes.items(), colors, dashes, strict=False):
        ratios = size_ratios(of)
        sns.ecdfplot(
            ratios[np.isfinite(ratios)], color=color, linestyle=linestyle, label=title, ax=axis
        )
    if marked:
        axis.axvspan(*marked, color="#ddaa33", alpha=0.5, label="Fig. 2a: road, vegetation / car")
    axis.set(xscale="log", xlabel="largest / smallest class of an image (pixels, log scale)")
    axis.set(ylabel="share of the images", ylim=(0, 1.02))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def plot_concentration(sizes: Mapping[str, np.ndarray]):
    """Which share of the weights the heaviest pixels carry, for weights 1, 1/√S and 1/S.

    Args:
        sizes: title -> sizes (N, L); one panel for each.
    """
    rows = -(-len(sizes) // 2)
    figure, axes = subplots(rows, 2, 3.3 * rows, sharex=True, sharey=True)
    labels = {0: "1 (CE)", 0.5: "1/√S", 1: "1/S (PAT)"}
    for axis, (title, of) in zip(axes.flat, sizes.items(), strict=False):
        for exponent, (color, linestyle) in STYLES.items():
            pixels, carried = concentration(of, exponent)
            # Straight lines between the points are curved on a logarithmic axis.
            x = np.geomspace(1e-4, 1, 300)
            y = np.interp(x, pixels, carried)
            axis.plot(100 * x, y, color=color, linestyle=linestyle, label=labels[exponent])
        axis.axhline(0.5, color="#767676", linewidth=0.8)
        axis.set_title(title, loc="left", fontsize="medium")
        axis.set(xscale="log", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    for axis in axes.flat[len(sizes) :]:
        axis.set_visible(False)
    for axis in axes.flat[: len(sizes)]:
        axis.set_xlabel("heaviest pixels (% of all, log scale)")
        axis.xaxis.set_tick_params(labelbottom=True)
    axes[0, 0].set_ylabel("share of the weight")
    axes[0, 0].legend(title="weight of a pixel", loc="upper left", fontsize=9)
    return figure
