"""One run: its curves, and its score on each class."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from patlib.metrics import class_groups
from patlib.plots.colors import GROUP_COLORS, GROUP_HATCHES
from patlib.records import RunRecord


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
    hatches = [GROUP_HATCHES[group] for group, classes in groups.items() for _ in classes]

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
        Patch(facecolor=color, hatch=GROUP_HATCHES[group], edgecolor="white", label=group)
        for group, color in GROUP_COLORS.items()
    ]
    right.legend(handles=handles, loc="lower right")
    return figure
