"""Images above label maps."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from patlib.plots.colors import class_colors, label_colors


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
            axes[row, column].imshow(label_colors(labels, class_names), interpolation="nearest")
    for row, title in enumerate(["image", *label_maps]):
        axes[row, 0].set_ylabel(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    shown = np.unique(np.concatenate([np.ravel(m) for maps in label_maps.values() for m in maps]))
    entries = [
        Patch(facecolor=color, edgecolor="black", linewidth=0.5, label=name)
        for c, (name, color) in enumerate(zip(class_names, class_colors(class_names), strict=True))
        if c in shown
    ]
    if 255 in shown:
        entries.append(Patch(facecolor="white", edgecolor="black", linewidth=0.5, label="ignored"))
    figure.legend(handles=entries, loc="outside lower center", ncols=min(len(entries), 7))
    return figure
