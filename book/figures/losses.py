"""The losses as a family: the weight of a pixel, the class prior, the cost, measured for each."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from figures import load_script, table
from patlib.checks import check_integer, check_number
from patlib.losses import LOSSES, SegmentationLoss, build_loss, mix

common = load_script("benchmarks/common.py")

NUM_IMAGES = 1000  # of the made-up training set
PIXELS = 10**6  # of each of its images
DRAWS = 32  # of BLV's noise, over which its gradient is averaged
SEEN = (0.02, 0.98)  # of p in the figure
ALIKE = 1.4  # weights that differ by less than this factor are drawn as one curve
# The members in each panel of the figure: those that differ there, and a few that do not.
DRAWN = {
    "confidence": "CE|CB|BLV|PAT|Focal|BMS|LDAM, bare|Dice|Jaccard|Tversky|Lovász",
    "in_image": "CE|Focal|CB|BMS|LDAM, bare|BLV|PAT|PAT, a = 1/2|Dice|Jaccard|Lovász",
    "in_dataset": "CE|Focal|LDAM, bare|BLV|PAT|Dice|Lovász|CE, ENet|CB|PAT, data set|BMS",
    "prior": "CE|Focal|BMS|LDAM, bare|PAT|PAT, a = 1/2|PAT, b = 1",
}
UNSURE, HALF, SURE = 0.1, 0.5, 0.9


class Member(NamedTuple):
    """A loss with its parameters.

    Attributes:
        label: its name on the page.
        name: of ``LOSSES``.
        params: of the loss, beside what it needs of the training set.
    """

    label: str
    name: str
    params: Mapping

    def build(self, sizes) -> SegmentationLoss:
        """The loss with what it needs of a training set, sizes (N, L); at the end of training."""
        return self.build_from(sizes.sum(0), (sizes > 0).sum(0), len(sizes))

    def build_from(self, counts, images, num_images: int) -> SegmentationLoss:
        loss = build_loss(self.name, len(counts), counts, images, num_images, **self.params)
        if hasattr(loss, "progress"):
            loss.progress = 1.0
        return loss

    @property
    def benchmark(self) -> str | None:
        """Its row in the records of ``benchmarks/losses.py``; None if it has none."""
        defaults = {"gamma": 2.0, "temperature": 20.0, "losses": mix.DEFAULT}
        params = {k: v for k, v in self.params.items() if defaults.get(k) != v}
        rows = {name: (name, {}) for name in LOSSES} | common.VARIANTS
        return next((row for row, timed in rows.items() if timed == (self.name, params)), None)


def family(temperature: float = 20.0, gamma: float = 2.0) -> list[Member]:
    """The losses of the library and the variants that weigh differently."""
    pat = {"temperature": temperature}
    return [
        Member("CE", "ce", {}),
        Member("CE, inverse", "ce", {"class_weights": "inverse"}),
        Member("CE, median frequency", "ce", {"class_weights": "median_frequency"}),
        Member("CE, ENet", "ce", {"class_weights": "enet"}),
        Member("Focal", "focal", {"gamma": gamma}),
        Member("CB", "cb", {}),
        Member("CBFocal", "cb_focal", {"gamma": gamma}),
        Member("BMS", "bms", {}),
        Member("LDAM, bare", "ldam", {}),
        Member("LDAM, complete", "ldam", {"scale": 30.0, "deferred": 0.8}),
        Member("BLV", "blv", {}),
        Member("BLV, σ = 4", "blv", {"sigma": 4.0}),
        Member("PAT", "pat", pat),
        Member("PAT, a = 1/2", "pat", pat | {"size_exponent": 0.5}),
        Member("PAT, b = 1", "pat", pat | {"presence_exponent": 1.0}),
        Member("PAT, data set", "pat", pat | {"sizes": "dataset"}),
        Member("PAT, normalised", "pat", pat | {"normalize": "weights"}),
        Member("Dice", "dice", {}),
        Member("Jaccard", "jaccard", {}),
        Member("Tversky", "tversky", {}),
        Member("Lovász", "lovasz", {}),
        Member("CE + Jaccard", "mix", {"losses": mix.DEFAULT}),
    ]


# ------------------------------------------------------------------ what a pixel weighs


class Setting(NamedTuple):
    """An image in which one class, number 0, is looked at, and what the training set holds of it.

    The other classes share what is left of the image and of the training pixels equally, and are in
    every training image.

    Attributes:
        num_classes: L.
        side: the image has side x side pixels.
        in_image: share of the class in the image.
        in_dataset: share of the class in the training pixels.
        in_images: share of the training images that hold the class.
        elsewhere: p at the pixels of the other classes. (A loss on regions depends on it: what is
            falsely predicted as the class enlarges its region.)
    """

    num_classes: int = 8
    side: int = 100
    in_image: float = 0.01
    in_dataset: float = 0.01
    in_images: float = 0.5
    elsewhere: float = 0.95


def check_setting(setting: Setting) -> Setting:
    """The setting, or an error that names what is wrong with it."""
    check_integer("num_classes", setting.num_classes, minimum=3)
    check_integer("side", setting.side, minimum=10, maximum=1000)
    for name in ("in_dataset", "elsewhere"):
        check_number(name, getattr(setting, name), above=0, below=1)
    least = 10 / setting.side**2  # a tenth of it is a pixel
    what = f"in_image (of side={setting.side})"
    check_number(what, setting.in_image, minimum=least, maximum=0.5)
    check_number("in_images", setting.in_images, minimum=10 / NUM_IMAGES, maximum=1)
    return setting


def gradients(member: Member, setting: Setting, p: torch.Tensor, target: torch.Tensor):
    """The gradient of a loss by the logits of each pixel, float64 (L, P).

    The class has the probability p at its pixels, and the others share the rest equally. A loss
    that takes the softmax of s · logits has logits that are s times smaller: p is what it sees.

    Args:
        p: probability of the true class of each pixel, (P,).
        target: the true classes, (P,).
    """
    others = setting.num_classes - 1
    counts = torch.full((setting.num_classes,), (1 - setting.in_dataset) / others)
    counts[0] = setting.in_dataset
    counts = (counts.double() * NUM_IMAGES * PIXELS).round().long()
    images = torch.full_like(counts, NUM_IMAGES)
    images[0] = round(setting.in_images * NUM_IMAGES)
    loss = member.build_from(counts, images, NUM_IMAGES)
    z = ((1 - p) / others).log().repeat(setting.num_classes, 1)
    z[target, torch.arange(len(p))] = p.log()
    total = torch.zeros_like(z)
    draws = DRAWS if member.name == "blv" else 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(draws):
            x = (z / loss.logit_scale).unsqueeze(0).requires_grad_()
            loss(x, target.unsqueeze(0)).backward()
            total += x.grad[0] / draws
    return total


def labels(setting: Setting) -> torch.Tensor:
    """The true classes of the pixels: first those of class 0, then equally many of each other."""
    pixels = setting.side**2
    of_class = max(round(setting.in_image * pixels), 1)
    rest = torch.arange(pixels - of_class) % (setting.num_classes - 1) + 1
    return torch.cat([torch.zeros(of_class, dtype=torch.int64), rest])


def weight_by_confidence(member: Member, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """The weights of pixels of the class with p evenly spread, by that at p = 1/2: p, weights.

    A weight is the norm of the gradient by the logits of a pixel, divided by that of cross-entropy.
    """
    target = labels(setting)
    mine = target == 0
    p = torch.full((len(target),), setting.elsewhere, dtype=torch.float64)
    p[mine] = (torch.arange(mine.sum()).double() + 0.5) / mine.sum()
    norms, reference = (
        gradients(m, setting, p, target)[:, mine].norm(dim=0).numpy()
        for m in (member, Member("CE", "ce", {}))
    )
    x, weights = p[mine].numpy(), norms / reference
    return x, weights / np.exp(np.interp(HALF, x, np.log(weights)))


def weight(member: Member, setting: Setting) -> float:
    """The weight of a pixel of the class by that of a pixel of another class, both of p = 1/2.

    The pixels of the class have p = 1/2, and so have a hundred of the next class; the gradient is
    averaged over both. Cross-entropy has 1.
    """
    target = labels(setting)
    p = torch.full((len(target),), setting.elsewhere, dtype=torch.float64)
    own, other = target == 0, (target == 1).nonzero().flatten()[:100]
    p[own] = p[other] = HALF
    found = gradients(member, setting, p, target)
    return (found[:, own].mean(1).norm() / found[:, other].mean(1).norm()).item()


def weights_along(
    member: Member, setting: Setting, field: str, values: Sequence[float]
) -> np.ndarray:
    """Weights at the values of a field of the setting, by the weight at the setting itself."""
    found = [weight(member, setting._replace(**{field: value})) for value in values]
    return np.array(found) / weight(member, setting)


# ------------------------------------------------------------------ table


def measure(
    members: Sequence[Member], setting: Setting, sizes: torch.Tensor, record: Mapping
) -> pd.DataFrame:
    """What the tables say: a row for each member, by its label.

    Columns: ``sure`` (the weight at p = 0.9 by that at 0.1), ``image``, ``dataset``, ``images``
    (the weight where the class is ten times smaller in the image, in the training pixels, and in
    ten times fewer training images), ``largest`` and ``rarest`` (prior of the class with most and
    with fewest training pixels, NaN without a prior), ``time`` and ``memory`` (of the loss by those
    of cross-entropy, in the first shape of the record, float32; NaN if not measured).

    Args:
        members: losses.
        setting: of the weights.
        sizes: valid pixels of each class in each training image, (N, L), for the priors.
        record: of ``benchmarks/losses.py``.
    """
    order = sizes.sum(0).argsort(descending=True)
    timed = timings(record)
    rows = {}
    for member in members:
        p, weights = weight_by_confidence(member, setting)
        unsure, sure = np.exp(np.interp((UNSURE, SURE), p, np.log(weights)))
        row = {"sure": sure / unsure}
        for column, field in FIELDS.items():
            tenth = [getattr(setting, field) / 10]
            row[column] = weights_along(member, setting, field, tenth)[0]
        prior = member.build(sizes).class_prior(sizes)
        row["largest"], row["rarest"] = (
            (math.nan, math.nan) if prior is None else prior[order[[0, -1]]].tolist()
        )
        row["time"], row["memory"] = timed.get(member.benchmark, (math.nan, math.nan))
        rows[member.label] = row
    return pd.DataFrame.from_dict(rows, orient="index")


FIELDS = {"image": "in_image", "dataset": "in_dataset", "images": "in_images"}


def timings(record: Mapping) -> dict[str, tuple[float, float]]:
    """Row of ``benchmarks/losses.py`` -> its time and memory by those of cross-entropy."""
    first = record["results"][0]
    case = (first["shape"], first["dtype"])
    rows = {r["loss"]: r for r in record["results"] if (r["shape"], r["dtype"]) == case}
    peak = rows["ce"]["peak_bytes"]
    return {
        name: (row["ratio_to_ce"]["median"], row["peak_bytes"] / peak) for name, row in rows.items()
    }


def times(value: float) -> str:
    """A weight as text, to two digits."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def ratio(value: float) -> str:
    return "not measured" if math.isnan(value) else f"{value:.2f}"


def percent(value: float) -> str:
    return "none" if math.isnan(value) else f"{100 * value:.1f}"


TITLES = {
    "sure": ("p = 0.9 against p = 0.1", times),
    "image": ("10 times smaller in the image", times),
    "dataset": ("10 times rarer in training", times),
    "images": ("in 10 times fewer training images", times),
    "largest": ("prior of the largest class (%)", percent),
    "rarest": ("prior of the rarest class (%)", percent),
    "time": ("time, CE = 1", ratio),
    "memory": ("memory, CE = 1", ratio),
}


def weights_table(name: str, found: pd.DataFrame, columns: Sequence[str]):
    """Columns of :func:`measure` as text."""
    rows = [
        [label, *(TITLES[column][1](row[column]) for column in columns)]
        for label, row in found.iterrows()
    ]
    return table(name, ["loss", *(TITLES[column][0] for column in columns)], rows)


# ------------------------------------------------------------------ figures


def drawn(members: Sequence[Member], panel: str) -> list[Member]:
    return [m for m in members if m.label in DRAWN[panel].split("|")]


def plot_weights(members: Sequence[Member], setting: Setting):
    """What a pixel weighs by its confidence, by its class in the image and in the training set."""
    shares = np.geomspace(0.001, 0.5, 8)
    figure, axes = plt.subplots(3, 1, figsize=(4.8, 10), layout="constrained")
    shown = drawn(members, "confidence")
    curves = {m.label: weight_by_confidence(m, setting) for m in shown}
    x = next(iter(curves.values()))[0]
    seen = (x >= SEEN[0]) & (x <= SEEN[1])
    curves = {label: values[seen] for label, (_, values) in curves.items()}
    _draw(axes[0], x[seen], curves, shown)
    axes[0].set_xlabel("p, the probability of the true class")
    axes[0].set_title("by confidence (p = 0.5: weight 1)", loc="left", fontsize=11)
    axes[0].set_xticks([0, 0.5, 1])
    for axis, field, where in (
        (axes[1], "in_image", "image"),
        (axes[2], "in_dataset", "training set"),
    ):
        shown = drawn(members, field)
        curves = {m.label: weights_along(m, setting, field, shares) for m in shown}
        _draw(axis, 100 * shares, curves, shown)
        axis.set_xscale("log")
        axis.set_xticks([0.1, 1, 10, 50], ["0.1", "1", "10", "50"])
        axis.minorticks_off()
        axis.set_xlabel(f"share of the class in the pixels of the {where} (%)")
        reference = f"{100 * getattr(setting, field):g} %"
        axis.set_title(f"by size in the {where} ({reference}: weight 1)", loc="left", fontsize=11)
    for axis in axes:
        axis.set(yscale="log", ylabel="weight, CE = 1")
        low, high = axis.get_ylim()
        ticks = [t for t in (0.001, 0.01, 0.1, 0.3, 1, 3, 10, 100) if low <= t <= high]
        ticks = ticks if high / low < 300 else [t for t in ticks if t not in (0.3, 3)]
        axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
    return figure


def plot_priors(priors: Mapping[str, np.ndarray], members, class_names: Sequence[str]):
    """The prior of each class, the classes from the largest down; those that coincide as one.

    Args:
        priors: label -> prior (L,), in the order of the names.
        members: with these labels.
        class_names: names of the classes, from the one with most training pixels down.
    """
    figure, axis = plt.subplots(figsize=(4.8, 4), layout="constrained")
    shown = [m for m in drawn(members, "prior") if m.label in priors]
    curves = {m.label: 100 * priors[m.label] for m in shown}
    _draw(axis, np.arange(len(class_names)), curves, shown, alike=1.1, marker="o")
    axis.set_xticks(range(len(class_names)), class_names, rotation=60, ha="right")
    axis.set(yscale="log", ylabel="class prior (%)")
    low, high = axis.get_ylim()
    ticks = [t for t in (0.01, 0.1, 1, 10, 100) if low <= t <= high]
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    return figure


def together(curves: Mapping[str, np.ndarray], alike: float) -> list[list[str]]:
    """Labels of curves that nowhere differ by as much as this factor from the first of them."""
    groups: list[list[str]] = []
    for label, values in curves.items():
        for group in groups:
            if np.abs(np.log(values / curves[group[0]])).max() < np.log(alike):
                group.append(label)
                break
        else:
            groups.append([label])
    return groups


LINES = ("-", "--", "-.", ":")
LABEL_LINES = 15.5  # of text in the height of a panel


def _draw(axis, x, curves, members: Sequence[Member], alike: float = ALIKE, **style) -> None:
    """Curves, label -> values, with their names at their right ends; those alike as one."""
    loss_of = {m.label: m.name for m in members}
    ends = []
    for k, group in enumerate(together(curves, alike)):
        label, values = group[0], curves[group[0]]
        color = LOSSES[loss_of[label]].color
        width = 2.6 if "PAT" in group or "CE" in group else 1.6
        axis.plot(
            x, values, color=color, linewidth=width, linestyle=LINES[k % 4], markersize=4, **style
        )
        ends.append((np.log(values[-1]), _listed(group), color))
    axis.grid(alpha=0.3)
    low, high = (np.log(f(np.concatenate(list(curves.values())))) for f in (np.min, np.max))
    margin = 0.05 * (high - low)
    axis.set_ylim(np.exp(low - margin), np.exp(high + margin))
    # A label of n lines takes n steps of the height; from the top down, none above another.
    ends.sort(reverse=True)
    step = (high - low + 2 * margin) / LABEL_LINES
    heights = [step * (text.count("\n") + 1) for _, text, _ in ends]
    y, top = [], high + margin
    for (value, _, _), height in zip(ends, heights, strict=True):
        y.append(min(value, top - height / 2))
        top = y[-1] - height / 2
    bottom = low - margin
    for i in range(len(y) - 1, -1, -1):
        y[i] = max(y[i], bottom + heights[i] / 2)
        bottom = y[i] + heights[i] / 2
    for (value, text, color), at in zip(ends, y, strict=True):
        axis.annotate(
            text,
            (1, np.exp(value)),
            xytext=(1.05, np.exp(at)),
            xycoords=axis.get_yaxis_transform(),
            textcoords=axis.get_yaxis_transform(),
            fontsize=10,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 1.5, "shrinkA": 0},
        )


def _listed(labels: Sequence[str], width: int = 17) -> str:
    """Labels with commas between them, in lines of about this width."""
    lines = [""]
    for k, label in enumerate(labels):
        piece = label.replace(", ", "\u00a0(", 1) + ")" if ", " in label else label
        piece += "," if k < len(labels) - 1 else ""
        if lines[-1] and len(lines[-1]) + len(piece) >= width:
            lines.append(piece)
        else:
            lines[-1] = f"{lines[-1]} {piece}".strip()
    return "\n".join(lines)
