"""Images above label maps."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from patlib.plots.colors import class_colors, label_colors


def subplots(rows: int, columns: int, height: float, width: float = 9.0, **settings):
    """Figure of this size in inches, and its axes as an array (rows, columns)."""
    size = dict(figsize=(width, height), squeeze=False, layout="constrained")
    return plt.subplots(rows, columns, **size, **settings)


def class_legend(
    figure, class_names: Sequence[str], maps, more: Sequence[tuple[str, str]] = ()
) -> None:
    """A legend of the classes that occur in label maps.

    Args:
        figure: where it is drawn, below.
        class_names: names of the classes 0 ... L-1.
        maps: sequences of label maps.
        more: names and colours of further entries.
    """
    shown = np.unique([label for labels in maps for m in labels for label in np.unique(m)])
    named = enumerate(zip(class_names, class_colors(class_names), strict=True))
    entries = [entry for c, entry in named if c in shown]
    entries += [("ignored", "#ffffff")] if 255 in shown else []
    handles = [
        Patch(facecolor=color, edgecolor="black", linewidth=0.5, label=name)
        for name, color in [*entries, *more]
    ]
    columns = min(len(handles), 7)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9)


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
    height = rows * 9.0 / columns * height / width + 0.75
    figure, axes = subplots(rows, columns, height, dpi=80)  # photographs make large files
    for column, image in enumerate(images):
        axes[0, column].imshow(image)
    for row, maps in enumerate(label_maps.values(), start=1):
        for column, labels in enumerate(maps):
            axes[row, column].imshow(label_colors(labels, class_names), interpolation="nearest")
    for row, title in enumerate(["image", *label_maps]):
        axes[row, 0].set_ylabel(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    class_legend(figure, class_names, label_maps.values())
    return figure
