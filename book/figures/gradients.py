"""Gradients by class: figures, tables, and what they say of the exponent that homogenises."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from figures import GRIDS, table
from figures.judging import Judged
from patlib import RunConfig
from patlib.gradients import (
    ClassGradients,
    finished_run,
    fit_exponent,
    measure,
    summarise,
    training_states,
)
from patlib.losses import LOSSES
from patlib.plots.colors import class_colors
from patlib.plots.panels import subplots
from patlib.study.runs import Run, load_runs
from patlib.study.wording import listing

LAYER_LABELS = {
    "logits": "logits",
    "features": "last feature map",
    "classifier": "classifier weights",
    "network": "all weights",
}
# Of the losses compared here: colour, marker, line.
STYLES = {
    "CE": (LOSSES["ce"].color, LOSSES["ce"].marker, "-"),
    "1/S": ("#0072b2", "s", ":"),
    "PAT": (LOSSES["pat"].color, LOSSES["pat"].marker, "--"),
}


def plot_gradients_by_size(
    states: Mapping[str, ClassGradients],
    class_names: Sequence[str],
    layers: Sequence[str] = ("logits", "classifier"),
):
    """Gradient norm over class size, a point for each class of each image, with fit and guides.

    Args:
        states: title -> measurement; a column each.
        class_names: of the classes 0 ... L-1.
        layers: of ``patlib.gradients.LAYERS``; a row each.
    """
    figure, axes = subplots(
        len(layers),
        len(states),
        2.6 * len(layers) + 0.6,
        3.0 * len(states) + 1.0,
        sharex=True,
        sharey="row",
    )
    colors = class_colors(class_names)
    markers = "os^vDPX*"
    for row, layer in zip(axes, layers, strict=True):
        for axis, (title, found) in zip(row, states.items(), strict=True):
            norms = found.norms[layer]
            for c in np.unique(found.classes):
                mine = found.classes == c
                style = dict(color=colors[c], marker=markers[c % len(markers)], linewidth=0.3)
                axis.scatter(found.sizes[mine], norms[mine], s=14, edgecolor="black", **style)
            fit = fit_exponent(found.sizes, norms, found.images)
            x = np.array([found.sizes.min(), found.sizes.max()])
            center = np.exp([np.log(found.sizes).mean(), np.log(norms).mean()])
            for slope, line, width in ((0.5, "--", 1), (1, ":", 1), (fit.value, "-", 2)):
                y = center[1] * (x / center[0]) ** slope
                axis.plot(x, y, color="black", linestyle=line, linewidth=width)
            axis.set(xscale="log", yscale="log")
            axis.set_title(f"{title}: α = {fit.value:.2f}", fontsize=10)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"gradient norm,\n{LAYER_LABELS[layer]}")
    for axis in axes[-1]:
        axis.set_xlabel("class size S (pixels)")
    points = dict(linestyle="", markeredgecolor="black", markeredgewidth=0.3)
    handles = [
        plt.Line2D([], [], color=color, marker=markers[c % len(markers)], label=name, **points)
        for c, (name, color) in enumerate(zip(class_names, colors, strict=True))
    ]
    lines = {"fit, slope α": ("-", 2), "slope 1/2": ("--", 1), "slope 1": (":", 1)}
    for label, (line, width) in lines.items():
        style = dict(color="black", linestyle=line, linewidth=width)
        handles.append(plt.Line2D([], [], label=label, **style))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=9)
    return figure


def plot_exponents_by_epoch(
    runs: Mapping[str, Mapping[str, Mapping]],
    layers: Sequence[str] = tuple(LAYER_LABELS),
):
    """The exponent α of ||g|| ∝ S^α of each loss on its own way through training.

    Args:
        runs: title -> method -> epochs done -> summary (``patlib.gradients.summarise``); a row of
            panels for each title.
        layers: the panels of a row; one that a summary does not have stays out.
    """
    figure, axes = subplots(
        len(runs),
        len(layers),
        2.5 * len(runs) + 0.5,
        2.3 * len(layers) + 0.8,
        sharey=True,
        sharex="row",
    )
    for row, (title, methods) in zip(axes, runs.items(), strict=True):
        for axis, layer in zip(row, layers, strict=True):
            for height, line in ((0, "-"), (0.5, "--"), (1, ":")):
                axis.axhline(height, color="0.5", linewidth=1, linestyle=line, zorder=0)
            for k, (method, states) in enumerate(methods.items()):
                color, marker, line = STYLES.get(method, (f"C{k}", "D", "-."))
                epochs = np.array([int(epoch) for epoch in states], dtype=float)
                fits = np.array([summary[layer]["exponent"] for summary in states.values()])
                # Side by side, because two of the losses are nearly the same.
                shift = 0.02 * epochs.max() * (k - (len(methods) - 1) / 2)
                axis.errorbar(
                    epochs + shift,
                    fits[:, 0],
                    np.abs(fits[:, 1:] - fits[:, :1]).T,
                    color=color,
                    marker=marker,
                    linestyle=line,
                    markersize=7 if marker == "*" else 5,
                    capsize=2,
                    label=method,
                )
            axis.set_title(LAYER_LABELS[layer], fontsize=10)
        row[0].set_ylabel(f"{title}\nexponent α")
        for axis in row:
            axis.set_xlabel("epochs done")
            axis.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def plot_class_norms(
    summaries: Mapping[str, Mapping],
    class_names: Sequence[str],
    layers: Sequence[str] = ("logits", "classifier", "network"),
):
    """How large the gradient of each class is beside that of the others, largest classes first.

    The geometric mean over the images that contain the class, divided by that over the classes: 1
    is the average class.

    Args:
        summaries: method -> summary (``patlib.gradients.summarise``).
        class_names: of the classes 0 ... L-1.
        layers: a panel each.
    """
    first = next(iter(summaries.values()))[layers[0]]
    order = [first["classes"][i] for i in np.argsort(first["sizes"])[::-1]]
    figure, axes = subplots(
        1, len(layers), 0.26 * len(order) + 1.4, 3.0 * len(layers) + 0.5, sharey=True, sharex=True
    )
    for axis, layer in zip(axes[0], layers, strict=True):
        axis.axvline(1, color="0.5", linewidth=1, zorder=0)
        for k, (method, summary) in enumerate(summaries.items()):
            color, marker, line = STYLES.get(method, (f"C{k}", "D", "-."))
            part = summary[layer]
            norms = np.array(part["norms"]) / np.exp(np.log(part["norms"]).mean())
            rows = [order.index(c) for c in part["classes"] if c in order]
            values = [n for c, n in zip(part["classes"], norms, strict=True) if c in order]
            by_row = np.argsort(rows)
            axis.plot(
                np.array(values)[by_row],
                np.array(rows)[by_row],
                color=color,
                marker=marker,
                linestyle=line,
                linewidth=1,
                markersize=8 if marker == "*" else 5,
                label=method,
            )
        axis.set(xscale="log", xlabel="gradient norm / mean of classes")
        axis.set_title(LAYER_LABELS[layer], fontsize=10)
        axis.grid(alpha=0.3)
    low, high = axes[0, 0].get_xlim()
    ticks = [x for k in range(-6, 7) for x in (10.0**k, 3 * 10.0**k) if low <= x <= high]
    axes[0, 0].set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes[0, 0].set_xticks([], minor=True)
    sizes = dict(zip(first["classes"], first["sizes"], strict=True))
    axes[0, 0].set_yticks(range(len(order)), [f"{class_names[c]} ({sizes[c]:,.0f})" for c in order])
    axes[0, 0].set_ylabel("class (mean S, pixels)")
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


KEYS = {"CE": "ce", "1/S": "size", "PAT": "pat"}  # of the methods, in glued names
STAGES = ("start", "middle", "end")
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the study


def losses(temperature: float = 20.0) -> dict[str, dict]:
    """The losses compared here: label -> settings of a run."""
    return {
        "CE": {"loss": "ce"},
        "1/S": {"loss": "pat", "loss_params": {"weight": "none"}},
        "PAT": {"loss": "pat", "loss_params": {"temperature": temperature}},
    }


def train_and_measure(
    methods: Mapping[str, Mapping], num_images: int, **shared
) -> tuple[dict[str, RunConfig], dict[str, dict[int, ClassGradients]]]:
    """Train with each loss; measure at the start, half-way and at the end.

    Returns:
        method -> its run; method -> epochs done -> measurement.
    """
    configs = {label: RunConfig(**shared, **settings) for label, settings in methods.items()}
    measured = {}
    for label, config in configs.items():
        stages = sorted({0, config.epochs // 2, config.epochs})
        measured[label] = measure(config, training_states(config, stages), num_images)
    # On the same network 1/S is CE divided by S.
    found = [summarise(measured[label][0]) for label in ("CE", "1/S")]
    for ce, size in zip(*(summary.values() for summary in found), strict=True):
        assert abs(ce["exponent"][0] - 1 - size["exponent"][0]) < 1e-3
    return configs, measured


def measure_finished(folders: Sequence[str], num_images: int, data_root: str | None):
    """As :func:`train_and_measure`, of finished runs: folder's name -> ..."""
    configs, measured = {}, {}
    for folder in folders:
        label = Path(folder).expanduser().resolve().name
        configs[label], networks = finished_run(folder, data_root)
        measured[label] = measure(configs[label], networks, num_images)
    return configs, measured


def exponents_table(name: str, rows: Mapping[tuple, Mapping], header: Sequence[str]):
    """Exponents with their intervals: first cells of a row -> summary; a column each layer."""
    layers = next(iter(rows.values())).keys()
    header = [*header, *(f"α, {LAYER_LABELS[layer]}" for layer in layers)]
    text = "{:.2f} [{:.2f}, {:.2f}]"
    cells = [
        [*first, *(text.format(*summary[layer]["exponent"]) for layer in layers)]
        for first, summary in rows.items()
    ]
    return table(name, header, cells)


def ratios_table(name: str, runs: Mapping[str, Mapping[str, Mapping]], methods: Sequence[str]):
    """Largest over smallest gradient of the classes of an image, at each stage and layer."""
    rows = []
    for title, by_method in runs.items():
        for index, stage in enumerate(STAGES):
            for layer, label in LAYER_LABELS.items():
                ratios = [
                    f"{list(by_method[m].values())[index][layer]['ratio']:.1f}"
                    if m in by_method
                    else "not run"
                    for m in methods
                ]
                rows.append([title, stage, label, *ratios])
    header = [f"largest / smallest, {method}" for method in methods]
    return table(name, ["data", "of training", "gradient at", *header], rows)


def homogenising_exponents(runs: Mapping, recorded: Mapping) -> dict[tuple, float]:
    """(title, method, stage, layer) -> the size_exponent that would homogenise: own + α.

    Args:
        runs: title -> method -> epochs done -> summary.
        recorded: title -> entry of study/records/gradients.json.
    """
    wanted = {}
    for title, methods in runs.items():
        for method, states in methods.items():
            params = recorded[title]["methods"][method]["config"]["loss_params"]
            # PAT's own exponent is 1 unless the record says otherwise.
            own = params.get("size_exponent", 0 if method == "CE" else 1)
            for stage, summary in zip(STAGES, states.values(), strict=True):
                for layer in LAYER_LABELS:
                    alpha = summary[layer]["exponent"][0]
                    wanted[title, method, stage, layer] = own + alpha
    return wanted


def stage_numbers(name: str, methods: Mapping[str, Mapping]) -> dict[str, str]:
    """Exponent and ratio at the start, half-way and at the end, by the names they are glued as."""
    numbers = {}
    for method, states in methods.items():
        epochs = list(states)
        # Of two states the first one also stands for half-way.
        epochs = epochs if len(epochs) == len(STAGES) else [epochs[0], epochs[0], epochs[-1]]
        for stage, epoch in zip(STAGES, epochs, strict=True):
            for layer, part in states[epoch].items():
                key = f"{name}-{KEYS.get(method, method)}-{stage}-{layer}"
                numbers[key] = f"{part['exponent'][0]:.2f}"
                numbers[f"{key}-ratio"] = f"{part['ratio']:.1f}"
    return numbers


def conclusions(runs: Mapping[str, Mapping[str, Mapping]]) -> dict[str, str]:
    """The sentences on the recorded runs, by the names they are glued as."""
    parts = [
        (method, index, layer, part, by_method)
        for by_method in runs.values()
        for method, states in by_method.items()
        for index, summary in enumerate(states.values())
        for layer, part in summary.items()
    ]
    divided = [part["exponent"] for method, _, _, part, _ in parts if method != "CE"]
    below = sum(high < 0 for _, _, high in divided)
    as_supposed = {
        (layer, index)
        for method, index, layer, part, _ in parts
        if method == "CE" and abs(part["exponent"][0] - 1) < 0.05
    }
    assert as_supposed == {("classifier", 0)}  # where CE has the exponent of Eq. (7)
    shifts = [
        abs(part["exponent"][0] - list(by["1/S"].values())[index][layer]["exponent"][0])
        for method, index, layer, part, by in parts
        if method == "PAT" and "1/S" in by
    ]
    ends = [{m: [*states.values()][-1] for m, states in by.items()} for by in runs.values()]
    ends = [end for end in ends if {"CE", "PAT"} <= set(end)]

    def equality(layer):
        fairer = sum(end["PAT"][layer]["ratio"] < end["CE"][layer]["ratio"] for end in ends)
        return {len(ends): "more", 0: "less"}.get(fairer, "not always more")

    return {
        "signs": f"{below} of {len(divided)} exponents of 1/S and PAT lie below 0 with their whole "
        "interval.",
        "beta-shift": f"{max(shifts):.2f}" if shifts else "(not run)",
        "verdict": "In runs of 20 to 30 epochs the largest and the smallest gradient of a class "
        f"are {equality('network')} equal with PAT than with CE over all weights, where the update "
        f"is made, and {equality('logits')} equal at the logits; they are equal with neither.",
    }


def long_words(long: Mapping[str, Mapping[str, Mapping]]) -> dict[str, str]:
    """What the long runs leave of the difference between CE and PAT, by the names of the glue.

    Args:
        long: title -> method -> epochs done -> summary, of the last network.
    """
    ends = {
        title: [list(methods[m].values())[-1]["network"] for m in ("CE", "PAT")]
        for title, methods in long.items()
        if {"CE", "PAT"} <= methods.keys()
    }
    if not ends:
        return {"long_verdict": "Of the long runs none was measured yet."}
    nearer = [
        title
        for title, (ce, pat) in ends.items()
        if abs(pat["exponent"][0]) < abs(ce["exponent"][0])
    ]
    depends = [title for title, (_, pat) in ends.items() if not _holds_zero(pat["exponent"])]
    where, outside = (
        f"on {listing(titles)}" if titles else "on no data set" for titles in (nearer, depends)
    )
    exponents, ratios = (
        "; ".join(f"{show(ce)} and {show(pat)} on {title}" for title, (ce, pat) in ends.items())
        for show in (
            lambda part: "{:.2f} [{:.2f}, {:.2f}]".format(*part["exponent"]).replace("-", "−"),
            lambda part: f"{part['ratio']:.1f}",
        )
    )
    return {
        "long_verdict": "After 100 epochs (one network of each), over all weights, the exponent of "
        f"PAT is nearer to 0 than that of CE {where}, and its interval leaves out 0 {outside} (CE "
        f"and PAT: {exponents}). In a median image the largest gradient of a class is, with CE and "
        f"with PAT, {ratios} times the smallest.",
    }


def _holds_zero(exponent: Sequence[float]) -> bool:
    """Whether the interval of an exponent (fit, low, high) holds 0."""
    _, low, high = exponent
    return low <= 0 <= high


def exponent_runs(records: Path) -> dict[str, list[dict[float, Run]]]:
    """The runs with 1/S^a on CamVid: normalisation -> exponent -> run, of each complete seed.

    With ``normalize="weights"`` a = 0 is cross-entropy: where that run is missing, the one of
    Table 1 stands for it.
    """
    small = GRIDS / "small"
    found: dict = {"images": {}, "weights": {}}
    for run in [
        *load_runs(small / "components.yaml", records),
        *load_runs(small / "table1.yaml", records),
    ]:
        settings = run.planned.settings
        if run.record is None or settings["dataset"] != "camvid":
            continue
        if run.method.startswith("1/S"):
            normalize, a = (settings["loss_params"][k] for k in ("normalize", "size_exponent"))
        elif run.method == "CE":
            normalize, a = "weights", 0.0
        else:
            continue
        run = replace(run, planned=replace(run.planned, method=f"{a:g}"))
        found[normalize].setdefault(run.seed, {}).setdefault(a, run)
    return {
        normalize: [by for by in seeds.values() if len(by) == len(EXPONENTS)]
        for normalize, seeds in found.items()
    }


def mean_scores(seeds: Sequence[Mapping[float, Run]], split: str) -> dict[float, float]:
    """Exponent -> mean IoU (%), the mean over the seeds."""
    return {a: 100 * np.mean([by[a].score("miou", split) for by in seeds]) for a in EXPONENTS}


def study_sentence(seeds: Sequence[Mapping[float, Run]], low: float, high: float) -> str:
    """What the runs of one normalisation say of the best exponent.

    Args:
        seeds: exponent -> run, for each seed.
        low, high: the range of the exponents that would homogenise.
    """
    if not seeds:
        return "The five are not complete for any seed yet."
    tables = [mean_scores(seeds, split) for split in ("validation", "test")]
    best, best_test = (max(scores, key=scores.get) for scores in tables)

    def where(a):
        return "inside" if low <= a <= high else "below" if a < low else "above"

    text = f"With {len(seeds)} seeds" if len(seeds) > 1 else "With one seed"
    text += f", the validation images choose a = {best:g}, {where(best)} that range; "
    if best == best_test:
        text += "on the test images it is the best as well. "
    else:
        text += f"on the test images a = {best_test:g}, {where(best_test)} it, is the best. "
    judged = Judged(run for by in seeds for run in by.values())
    verdicts: dict = {}  # such as "lower" -> the other exponents
    for a in EXPONENTS:
        if a != best:
            verdict = judged.verdict(f"{best:g}", "miou", f"{a:g}")
            verdicts.setdefault(verdict, []).append(f"{a:g}")
    joined = {"not distinguishable": "from", "not judged": "against", "equal": "to"}
    text += f"There, a = {best:g} is " + "; ".join(
        f"{verdict} {joined.get(verdict, 'than')} {listing(others)}"
        for verdict, others in verdicts.items()
    )
    if len(seeds) == 1:
        end = "But one seed does not say what another would change: it separates no exponents."
    elif set(verdicts) == {"higher"}:
        end = f"So a = {best:g} is set apart from the other four."
    else:
        end = "So the study does not single out one exponent."
    return f"{text}. {end}"
