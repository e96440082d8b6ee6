"""Figures of a comparison on one's own images."""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from patlib.data import build_dataset
from patlib.metrics import class_groups
from patlib.own_images.comparison import Comparison
from patlib.own_images.folder import Survey, class_table
from patlib.plots import (
    method_styles,
    plot_class_shares,
    plot_differences,
    plot_panels,
    plot_predictions,
)
from patlib.prediction import Predictor
from patlib.study.statistics import mean_iou

EXAMPLES = 2


def plot_tail(found: Survey) -> Figure:
    """How common each class is in the training images, and how large where it is."""
    return plot_class_shares({"training part": class_table(found)})


def plot_examples(found: Survey, split: str = "train", number: int = 4) -> Figure:
    """Images of a split and their masks, evenly spread."""
    dataset = build_dataset("folder", found.root, split, found.image_size)
    picked = np.unique(np.linspace(0, len(dataset) - 1, number).round().astype(int))
    images, masks = zip(*(dataset.arrays(int(i)) for i in picked), strict=True)
    return plot_panels(images, {"mask": masks}, found.class_names)


def plot_intervals(found: Comparison) -> Figure:
    """The other losses minus the chosen one, with 95 % intervals: all classes, and the tail."""
    panels = {"all classes": "miou", "tail": "tail"}
    if all(np.isnan(d.mean) for d in found.differences["tail"]):
        del panels["tail"]  # no test image holds a class of it
    return plot_differences(
        {"test": {title: found.differences[metric] for title, metric in panels.items()}}
    )


def plot_trade_off(found: Comparison) -> Figure | None:
    """Head against tail mean IoU on the test images over the shift by τ; the chosen shift marked.

    Means over the seeds. A shift by κ that was chosen is a mark beside the line. None where no test
    image holds a class of the tail.
    """
    if not any(np.isfinite(scores["tail"]) for scores in found.scores(found.best)):
        return None
    colors, markers = method_styles(found.runs)
    figure, axis = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    groups = found.groups
    styles = itertools.cycle(("-", "--", "-.", ":"))
    for (method, runs), dashes in zip(found.runs.items(), styles, strict=False):
        taus = [(s["tau"], i) for i, s in enumerate(runs[0].shifts) if "tau" in s]
        line = _head_and_tail(runs, [i for _, i in sorted(taus)], groups)
        axis.plot(*line.T, color=colors[method], linewidth=1.4, linestyle=dashes)
        chosen = runs[0].shifts.index(found.shifts[method])
        ((head, tail),) = _head_and_tail(runs, [chosen], groups)
        style = dict(color=colors[method], marker=markers[method], linestyle=dashes)
        axis.plot(head, tail, markersize=9, markeredgecolor="black", label=method, **style)
    axis.set(xlabel="head: test IoU of the commonest third (%)")
    axis.set(ylabel="tail: test IoU of the rarest third (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    return figure


def _head_and_tail(runs: Sequence, shifts: Sequence[int], groups) -> np.ndarray:
    """Mean IoU of head and tail, in percent, under each shift: (S, 2)."""
    rows = []
    for k in shifts:
        totals = np.stack([run.counts["test"][k].sum(0) for run in runs])
        means = [np.mean(mean_iou(totals, groups[group])) for group in ("head", "tail")]
        rows.append(100 * np.array(means))
    return np.stack(rows)


def plot_class_scores(found: Comparison) -> Figure:
    """Test IoU of each class and method under its shift, mean over the seeds; rare on the right."""
    result = found.runs[found.best][0].record.result
    counts = np.array(result["class_counts"])
    order = [c for classes in class_groups(counts).values() for c in classes]
    iou = np.array(
        [np.mean([s["iou"] for s in found.scores(method)], axis=0) for method in found.runs]
    )
    shares = 100 * counts / counts.sum()
    names = [f"{found.class_names[c]}\n{shares[c]:.2g} %" for c in order]
    size = (max(5.0, 0.62 * len(order) + 2.2), 0.42 * len(found.runs) + 1.9)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    sns.heatmap(
        100 * iou[:, order], ax=axis, cmap="cividis", vmin=0, vmax=100, annot=True, fmt=".0f",
        annot_kws={"fontsize": 9}, cbar_kws={"label": "test IoU (%)", "pad": 0.01},
        xticklabels=names, yticklabels=list(found.runs),
    )  # fmt: skip
    axis.tick_params(axis="x", rotation=40 if len(order) > 4 else 0)
    axis.tick_params(axis="y", rotation=0)
    axis.set_xlabel("class, and its share of the training pixels")
    return figure


def plot_example_predictions(found: Comparison, survey: Survey) -> Figure:
    """What the first run of each method predicts on test images, with the method's shift."""
    dataset = build_dataset("folder", survey.root, "test", survey.image_size)
    picked = np.unique(np.linspace(0, len(dataset) - 1, EXAMPLES).round().astype(int))
    images, truth = zip(*(dataset.arrays(int(i)) for i in picked), strict=True)
    maps = {}
    for method, runs in found.runs.items():
        predictor = Predictor(
            runs[0].folder, found.plan.settings["device"], prior_shift=found.shifts[method]
        )
        maps[method] = np.stack(list(predictor(Image.fromarray(image) for image in images)))
    return plot_predictions(images, truth, maps, found.class_names)
