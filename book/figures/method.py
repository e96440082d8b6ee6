"""The method in pictures: one pixel step by step, the curves of Fig. 3c, the weights 1/S."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib.colors import LogNorm
from matplotlib.patches import Patch

from patlib.checks import check_choice
from patlib.losses import LOSSES
from patlib.plots.colors import class_colors, label_colors

PAT_COLOR, FOCAL_COLOR, CE_COLOR = (LOSSES[name].color for name in ("pat", "focal", "ce"))
# Of one loss at several settings: light to dark, and markers for those who see no colours.
PAT_SHADES = ("#f4a582", "#e06c4f", PAT_COLOR, "#8c1d0c", "#4d0f05")
FOCAL_SHADES = ("#c9c97a", FOCAL_COLOR, "#6b6b1f", "#45450f", "#2b2b08")
MARKERS = ("o", "s", "^", "D", "v")
LEAST_P = 1e-3  # where loss curves begin: -log 0 is infinite


def beta(p, temperature: float, epsilon: float = 0.0):
    """Eq. (5): exp((1 - ε - p) / T), for p of any shape."""
    return np.exp((1 - epsilon - np.asarray(p, float)) / temperature)


def focal_coefficient(p, gamma: float):
    """(1 - p)^γ, for p of any shape."""
    return (1 - np.asarray(p, float)) ** gamma


def gradient_factor(p, temperature: float):
    """How much longer the gradient of β · (-log p) is than with β as a constant: 1 - p log p / T.

    It is 1 at p = 0 and p = 1 and at most 1 + 1 / (e T), at p = 1 / e.
    """
    p = np.asarray(p, float)
    return 1 - p * np.log(np.where(p > 0, p, 1)) / temperature


def quote(function: Callable, *marks: str) -> Markdown:
    """The code of a function of the library as it stands, without its docstring.

    Args:
        function: to quote from; nested functions are part of it.
        *marks: if given, only the lines with a comment that contains one of them.
    """
    code = textwrap.dedent(inspect.getsource(function))
    (definition,) = ast.parse(code).body
    first = definition.body[bool(ast.get_docstring(definition))]
    lines = textwrap.dedent("\n".join(code.splitlines()[first.lineno - 1 :])).splitlines()
    if marks:
        comments = {line.strip(): line.partition("  # ")[2] for line in lines}
        for mark in marks:
            assert any(mark in c for c in comments.values()), f"no comment on {mark} in {function}"
        lines = [line for line, c in comments.items() if any(mark in c for mark in marks)]
    file = function.__module__.replace(".", "/") + ".py"
    return Markdown("\n".join(["```python", f"# {file}, {function.__name__}", *lines, "```"]))


def interactive_curves() -> str:
    """Fig. 3c with sliders for T, ε and γ: HTML that needs no server, no library, no network."""
    return Path(__file__).with_name("fig3c.html").read_text(encoding="utf-8")


def plot_procedure(
    logits: Sequence[float],
    true_class: int,
    temperature: float = 20.0,
    epsilon: float = 0.0,
    size: int = 1,
):
    """One pixel from its logits to its loss in four steps: our drawing of Fig. 1 and 3a.

    Args:
        logits: of the pixel, (L,).
        true_class: number of its true class, 0 ... L-1.
        temperature, epsilon: T and ε of Eq. (5).
        size: S, the pixels of the true class in the image.

    Raises:
        ValueError: fewer than two logits, or true_class is none of their numbers.
    """
    x = np.asarray(logits, float)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"logits must be two numbers or more, got {logits!r}")
    check_choice("true_class", true_class, range(len(x)))
    p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    coefficient = beta(p, temperature, epsilon)
    loss = np.zeros(len(x))
    loss[true_class] = coefficient[true_class] * -np.log(p[true_class]) / size
    settings = f"T = {temperature:g}, ε = {epsilon:g}"
    steps = [
        ("1  logits", "logit", x, "{:.2f}"),
        ("2  softmax: p", "probability p (sum: 1)", p, "{:.3f}"),
        (
            f"3  Eq. (5): β = exp((1 − ε − p) / T), {settings}",
            "coefficient β",
            coefficient,
            "{:.4f}",
        ),
        (f"4  Eq. (4): y · β · (−log p) / S, S = {size} pixels", "loss", loss, "{:.4g}"),
    ]
    figure, axes = plt.subplots(
        2, 2, figsize=(8.5, 0.6 * len(x) + 2.4), sharey=True, layout="constrained"
    )
    names = [f"class {c}" + ("\n(true)" if c == true_class else "") for c in range(len(x))]
    colors = [PAT_COLOR if c == true_class else "#bbbbbb" for c in range(len(x))]
    hatches = ["//" if c == true_class else "" for c in range(len(x))]
    for axis, (title, label, values, digits) in zip(axes.flat, steps, strict=True):
        bars = axis.barh(names, values, color=colors, hatch=hatches, edgecolor="black")
        axis.bar_label(bars, [digits.format(value) for value in values], padding=3, fontsize=9)
        axis.set_title(title, loc="left", fontsize="medium")
        axis.set_xlabel(label)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.margins(x=0.2)
    axes[0, 0].invert_yaxis()
    return figure


def plot_scaling(temperatures: Sequence[float], gammas: Sequence[float], epsilon: float = 0.0):
    """What PAT and Focal multiply -log p with, and the product, against p: Fig. 3c.

    Three panels: the coefficients; the same, near 1; the loss of a pixel.

    Args:
        temperatures: T of PAT, at most five; solid lines.
        gammas: γ of Focal, at most five; dashed lines.
        epsilon: ε of PAT.
    """
    p = np.linspace(0, 1, 201)
    curves = _curves(p, temperatures, gammas, epsilon)
    inner = p[p >= LEAST_P]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 4.2), layout="constrained")
    for label, coefficient, style in curves:
        for axis in (left, middle):
            axis.plot(p, coefficient, label=label, markevery=20, **style)
        right.plot(inner, coefficient[p >= LEAST_P] * -np.log(inner), markevery=20, **style)
    for axis in (left, middle):
        axis.axhline(1, color=CE_COLOR, linestyle=":", linewidth=1.5, label="CE")
    right.plot(inner, -np.log(inner), color=CE_COLOR, linestyle=":", linewidth=1.5)
    left.set(ylabel="coefficient", title="coefficient")
    middle.set(ylabel="coefficient", ylim=(0.9, 1.3), title="the same, near 1")
    right.set(ylabel="loss of a pixel", ylim=(0, 6), title="coefficient × (−log p)")
    for axis in (left, middle, right):
        axis.set_xlabel("p of the true class")
        axis.grid(alpha=0.3)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, handlelength=3)
    return figure


def _curves(p, temperatures, gammas, epsilon=0.0):
    """Label, coefficients at p and line style of each setting."""
    kinds = (
        ("PAT, T", temperatures, lambda T: beta(p, T, epsilon), PAT_SHADES, "-"),
        ("Focal, γ", gammas, lambda gamma: focal_coefficient(p, gamma), FOCAL_SHADES, "--"),
    )
    curves = []
    for name, settings, coefficient, shades, linestyle in kinds:
        if len(settings) > len(shades):
            raise ValueError(f"{name}: at most {len(shades)} curves, got {len(settings)}")
        for setting, color, marker in zip(settings, shades, MARKERS, strict=False):
            style = dict(color=color, marker=marker, markersize=4, linestyle=linestyle)
            curves.append((f"{name} = {setting:g}", coefficient(setting), style))
    return curves


def plot_gradient_factor(temperatures: Sequence[float]):
    """How much longer the gradient of a pixel is when it also flows through β, against p.

    Args:
        temperatures: T of PAT, at most five.
    """
    p = np.linspace(0, 1, 201)
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for label, _, style in _curves(p, temperatures, []):
        T = float(label.rpartition("=")[2])
        axis.plot(
            p, gradient_factor(p, T), markevery=20, label=label.removeprefix("PAT, "), **style
        )
    axis.axvline(1 / np.e, color="#767676", linestyle=":", linewidth=1)
    axis.annotate("p = 1/e", (1 / np.e, 1), xytext=(4, -12), textcoords="offset points", fontsize=9)
    axis.set(xlabel="p of the true class", ylabel="gradient with / without\nthe part through β")
    axis.margins(y=0.12)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper right")
    return figure


def plot_released(temperature: float, num_classes: Sequence[int], epsilon: float = 0.0):
    """The coefficient of Eq. (5) beside those of the released code, against p, on a log scale.

    Args:
        temperature, epsilon: T and ε of Eq. (5).
        num_classes: numbers of classes L at which the released variant "ina" is drawn; at most 3.
    """
    shades = ("#a6a6a6", "#6e6e6e", "#1b1b1b")
    if len(num_classes) > len(shades):
        raise ValueError(f"num_classes: at most {len(shades)} curves, got {len(num_classes)}")
    p = np.linspace(0, 1, 201)
    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    curves = [
        (f"Eq. (5), T = {temperature:g}", beta(p, temperature, epsilon), PAT_COLOR, "-"),
        ("released inap", 1 / (2 * np.exp(p - 1)), "#005f9e", "--"),
    ]
    for L, color in zip(num_classes, shades, strict=False):
        curves.append((f"released ina, L = {L}", 1 / (2 * np.exp(L * (p - 1))), color, "-."))
    for (label, values, color, linestyle), marker in zip(curves, MARKERS, strict=False):
        style = dict(color=color, linestyle=linestyle, marker=marker, markersize=4, markevery=20)
        axis.plot(p, values, label=label, **style)
    axis.set(xlabel="p of the true class", ylabel="coefficient (log scale)", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(loc="upper right")
    return figure


def plot_size_weights(mask: np.ndarray, class_names: Sequence[str]):
    """A label map, and how much each of its pixels weighs when its class size divides it.

    Args:
        mask: classes 0 ... L-1, 255 for ignored pixels, (H, W).
        class_names: names of the classes.
    """
    sizes = np.bincount(mask.ravel(), minlength=256)
    weight = np.where(mask == 255, np.nan, 1 / sizes[mask])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    left.imshow(label_colors(mask, class_names), interpolation="nearest")
    shown = right.imshow(weight, norm=LogNorm(), cmap="cividis", interpolation="nearest")
    figure.colorbar(shown, ax=right, label="1/S (per pixel, log scale)")
    colors = class_colors(class_names)
    handles = [
        Patch(facecolor=colors[c], edgecolor="black", linewidth=0.5, label=f"{name}: {sizes[c]}")
        for c, name in enumerate(class_names)
        if sizes[c]
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, title="pixels of each class, S"
    )
    left.set_title("classes", fontsize="medium")
    right.set_title("weight 1/S; ignored pixels white", fontsize="medium")
    for axis in (left, right):
        axis.set(xticks=[], yticks=[])
    return figure
