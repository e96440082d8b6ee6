"""Scores of each method over the shift of its logits, and what cross-entropy reaches by a shift."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from figures.judging import NAMES
from patlib.metrics import scores_of_counts
from patlib.plots import method_styles
from patlib.plots.panels import subplots
from patlib.priors import STRENGTHS
from patlib.study.runs import Run, by_method
from patlib.study.shifts import best_shift, excess, shift_curve, shifted_counts
from patlib.study.simultaneous import Contrast, MethodScores, score_methods
from patlib.study.wording import listing, signed

MEDIAN = "CE, median frequency"  # changes the weights of the classes and nothing else
TRIED = {kind: (0.0, *strengths) for kind, strengths in STRENGTHS.items()}
FEWEST = 5  # classes: with fewer, a rank correlation says nothing
#: score -> its name, and the κ between which the protocol expects PAT's best
EXPECTED_KAPPA = {"pixel_accuracy": ("pixel accuracy", 0.75, 1.25), "miou": ("mIoU", 0.25, 0.75)}


def shift_text(kind: str, strength: float) -> str:
    """A shift as tables have it: ``τ = −0.5``."""
    symbol = {"tau": "τ", "kappa": "κ"}[kind]
    return f"{symbol} = {strength:g}".replace("-", "−")


def has_shifts(run: Run) -> bool:
    """Whether a run with a record has counted its pixels under shifts of its logits."""
    try:
        run.images(("shift_kinds",))
    except KeyError:  # made before shifts were counted
        return False
    return True


def with_shifts(
    panels: Mapping[str, Sequence[Run]],
) -> tuple[dict[str, list[Run]], str]:
    """The benchmarks without the runs that have not counted their pixels under shifts.

    Returns:
        title -> its other runs, without titles that have no record among them; and a sentence that
        names the runs that are left out, empty without any.
    """
    shown, out = {}, {}
    for title, runs in panels.items():
        without = [run for run in runs if run.record and not has_shifts(run)]
        names = {run.planned.name for run in without}
        kept = [run for run in runs if run.planned.name not in names]
        if any(run.record for run in kept):
            shown[title] = kept
        for run in without:
            out.setdefault(f"seed {run.seed} on {title}", []).append(run.method)
    if not out:
        return shown, ""
    words = "; ".join(f"{listing(methods)} of {where}" for where, methods in out.items())
    return shown, (
        f"Made before shifts were counted, and left out here: {words}. The scores of these methods "
        "there differ from those of pages that have all seeds."
    )


def summary(runs: Sequence[Run]) -> pd.DataFrame:
    """Each method of a benchmark before and after the shift that validation chooses for it.

    Args:
        runs: of one benchmark; methods without a record are left out.

    Returns:
        A row for each method: ``seeds``, ``shift`` (``τ = 0.25``), ``miou``, ``pixel_accuracy``,
        ``head`` and ``tail`` before and, as ``shifted_miou`` ..., after it, in [0, 1]; ``shared``,
        the number of seeds that CE has as well, and for these ``excess`` over the curve of CE (see
        :func:`patlib.study.shifts.excess`; NaN for CE and without such a seed).
    """
    done = by_method(run for run in runs if run.record)
    rows = {}
    for method, members in done.items():
        kind, strength = best_shift(members)
        curve = shift_curve(members, kind).set_index("strength")
        names = ("miou", "pixel_accuracy", "head", "tail")
        row = {"seeds": len(members), "shift": shift_text(kind, strength)}
        row |= {name: curve[name][0.0] for name in names}
        row |= {f"shifted_{name}": curve[name][strength] for name in names}
        of_ce = [run for run in done.get("CE", []) if run.seed in {of.seed for of in members}]
        row |= {"shared": len(of_ce), "excess": np.nan}
        if of_ce and method != "CE":
            same = [of for of in members if of.seed in {run.seed for run in of_ce}]
            point = shift_curve(same, kind).set_index("strength").loc[strength]
            row["excess"] = excess(shift_curve(of_ce, "tau"), point["miou"], point["tail"])
        rows[method] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def at_own_shifts(runs: Sequence[Run], metric: str, resamples: int = 2000) -> MethodScores:
    """The scores of runs with records, each method at the shift that validation chooses for it."""
    shifts = {method: best_shift(members) for method, members in by_method(runs).items()}

    def counts(run: Run) -> np.ndarray:
        return shifted_counts(run, *shifts[run.method])

    return score_methods(runs, metric, counts, resamples)


def shifted_contrasts(runs: Sequence[Run], metric: str, resamples: int = 2000) -> dict:
    """Every method minus CE, each at the shift that validation chooses: method -> Contrast.

    Methods with one seed are left out; empty if CE or all others have no more.
    """
    done = by_method(run for run in runs if run.record)
    done = {method: members for method, members in done.items() if len(members) > 1}
    if "CE" not in done or len(done) < 2:
        return {}
    scores = at_own_shifts([r for m in done.values() for r in m], metric, resamples)
    return {contrast.method: contrast for contrast in scores.against("CE")}


def higher_in_both(contrasts: Mapping[str, Mapping[str, Mapping[str, Contrast]]]) -> str:
    """The losses with a higher mIoU and tail than CE, each at its own shift: a sentence.

    Args:
        contrasts: title -> ``"miou"`` and ``"tail"`` -> those of :func:`shifted_contrasts`.
    """
    asked = {title: of for title, of in contrasts.items() if of["miou"]}
    if not asked:
        return "No two losses have several seeds yet."
    parts, none = [], []
    for title, of in asked.items():
        higher = [
            f"{method} ({signed(of['miou'][method].mean)}, {signed(of['tail'][method].mean)})"
            for method in of["miou"]
            if all(of[metric][method].verdict() == "higher" for metric in ("miou", "tail"))
        ]
        if higher:
            parts.append(f"{listing(higher)} on {title}")
        else:
            none.append(title)
    found = "; ".join(parts) + (f"; for no loss on {listing(none)}" if none else "")
    return (
        "With every loss at its own shift, mIoU and tail are both shown to be higher than those of "
        f"cross-entropy for {found if parts else 'no loss'}."
    )


def of_shared_seeds(runs: Sequence[Run]) -> list[Run]:
    """The runs with a record whose seed both PAT and CE have."""
    done = by_method(run for run in runs if run.record)
    seeds = [{run.seed for run in done.get(method, [])} for method in ("CE", "PAT")]
    both = set.intersection(*seeds)
    return [run for members in done.values() for run in members if run.seed in both]


def answer(title: str, runs: Sequence[Run], resamples: int = 2000, margin: float = 0.01) -> str:
    """Two or three sentences on PAT and CE, each at its own shift.

    Where both have several seeds, the differences are those of the table of all methods; else over
    the seeds that both have.

    Args:
        title: of the benchmark.
        runs: its runs.
        resamples: of the test part.
        margin: an excess up to this is called none.
    """
    shared = of_shared_seeds(runs)
    if not shared:
        return f"{title}: PAT and cross-entropy are still to run."
    table = summary(shared)
    pat, ce = table.loc["PAT"], table.loc["CE"]
    seeds = int(pat.seeds)
    of_seeds = "one seed" if seeds == 1 else f"{seeds} seeds"
    found = {
        metric: shifted_contrasts(runs, metric, resamples).get("PAT") for metric in ("miou", "tail")
    }

    def part(metric: str) -> str:
        contrast, name = found[metric], {"miou": "mIoU", "tail": "tail"}[metric]
        if contrast is None:
            difference = pat[f"shifted_{metric}"] - ce[f"shifted_{metric}"]
            return f"{signed(difference)} points of {name}"
        ends = f"{signed(contrast.low)} to {signed(contrast.high)}"
        return f"{signed(contrast.mean)} points of {name} ({contrast.verdict()}, {ends})"

    if pat.excess > margin:
        reach = (
            f"No shift of cross-entropy comes closer to that pair than {100 * pat.excess:.1f} "
            "points: a shift after training does not replace PAT."
        )
        if found["tail"] and found["tail"].verdict() != "higher":
            reach = (
                "In the mean, no shift of cross-entropy comes closer to that pair than "
                f"{100 * pat.excess:.1f} points, but no higher tail of PAT is shown."
            )
        if MEDIAN in table.index and (other := table.loc[MEDIAN, "excess"]) > margin:
            reach += (
                " Cross-entropy with class weights alone (median frequency) is "
                f"{100 * other:.1f} points outside as well."
            )
    else:
        reach = (
            "A shift of cross-entropy reaches that pair of scores within "
            f"{100 * max(pat.excess, 0):.1f} points, without another training."
        )
    if seeds == 1:
        reach = f"In this one run: {reach[0].lower()}{reach[1:]} Other seeds may differ."
    return (
        f"{title}, {of_seeds}: each moved to the prior that validation chooses, PAT differs from "
        f"cross-entropy by {part('miou')} and {part('tail')}. {reach}"
    )


def answers(
    panels: Mapping[str, Sequence[Run]], resamples: int = 2000, margin: float = 0.01
) -> tuple[str, str, str]:
    """:func:`answer` for several benchmarks.

    Returns:
        Where no shift of CE reaches PAT, which other losses do the same or more, and by how much
        PAT differs from CE: sentences. The last two are empty for one benchmark.
    """
    shared = {title: of_shared_seeds(runs) for title, runs in panels.items()}
    tables = {title: summary(runs) for title, runs in shared.items() if runs}
    if len(panels) < 2 or not tables:
        said = [answer(title, runs, resamples, margin) for title, runs in panels.items()]
        return " ".join(said) or "The runs of this chapter are still to come.", "", ""
    differences, outside, undecided, within = [], [], [], []
    for title, table in tables.items():
        pat, ce = table.loc["PAT"], table.loc["CE"]
        # judged with all runs, as in the table of all methods
        found = [shifted_contrasts(panels[title], m, resamples).get("PAT") for m in NAMES]
        points = [
            signed(of.mean if of else pat[f"shifted_{m}"] - ce[f"shifted_{m}"])
            for m, of in zip(NAMES, found, strict=True)
        ]
        word = found[1].verdict() if found[1] else "one seed"
        differences.append(f"{points[0]} and {points[1]} on {title} (tail {word})")
        if pat.excess <= margin:
            within.append(title)
        else:
            beyond = f"{title} ({100 * pat.excess:.1f} points)"
            (outside if word == "higher" else undecided).append(beyond)
    parts = []
    if outside:
        parts.append(
            f"more than a prior on {listing(outside)}: in the mean, no shift of cross-entropy "
            "reaches PAT's mIoU and tail at once, one of the two stays that far below"
        )
    if undecided:
        parts.append(
            f"more than a prior in the means only on {listing(undecided)}: PAT's tail is not shown "
            "to be higher"
        )
    if within:
        parts.append(
            f"no more than a prior on {listing(within)}: a shift of cross-entropy reaches both in "
            "the mean"
        )
    reach = "; ".join(parts)
    number, _, everywhere = _outside(panels, margin)
    others = [_above({title: panels[title] for title in tables})]
    if everywhere := [method for method in everywhere if method != "PAT"]:
        others.append(f"More than a prior on all {number} is, in the mean, {listing(everywhere)}.")
    return (
        f"{reach[0].upper()}{reach[1:]}.",
        " ".join(filter(None, others)),
        "With each at the shift that validation chooses, PAT minus cross-entropy in mIoU and in "
        f"the tail is {'; '.join(differences)} points.",
    )


def _above(panels: Mapping[str, Sequence[Run]]) -> str:
    """The other losses above PAT in mIoU and tail, each at its own shift: a sentence, or none.

    A loss is compared with PAT over the seeds that both have, if these are two or more.
    """
    above, unasked = Counter(), []
    for title, runs in panels.items():
        done = by_method(run for run in runs if run.record)
        for method in [method for method in done if method not in ("CE", "PAT")]:
            pair = {m: {run.seed for run in done.get(m, [])} for m in ("PAT", method)}
            seeds = set.intersection(*pair.values())
            if len(seeds) < 2:
                unasked.append(title)
                continue
            table = summary([run for m in pair for run in done[m] if run.seed in seeds])
            scores = table[["shifted_miou", "shifted_tail"]]
            above[method] += bool((scores.loc[method] > scores.loc["PAT"]).all())
    found = [(method, number) for method, number in above.most_common() if number]
    if not found:
        return ""
    (first, most), *others = found
    said = [f"{first} on {most} of {len(panels)}", *(f"{m} on {number}" for m, number in others)]
    rest = (
        f" On {listing(dict.fromkeys(unasked))}, losses with fewer than two seeds in common with "
        "PAT are left out of this; the table of all shifts has them."
        if unasked
        else ""
    )
    return (
        "Other losses, moved in the same way, have a higher mean than PAT in both scores: "
        f"{'; '.join(said)}.{rest}"
    )


def _outside(
    panels: Mapping[str, Sequence[Run]], margin: float
) -> tuple[int, list[str], list[str]]:
    """How many benchmarks have CE; the methods with several seeds on each; those outside on all."""
    tables = {t: summary(runs) for t, runs in panels.items() if any(run.record for run in runs)}
    tables = {t: table[table.shared > 1] for t, table in tables.items() if "CE" in table.index}
    if not tables:
        return 0, [], []
    first, *others = tables.values()
    asked = [m for m in first.index if m != "CE" and all(m in other.index for other in others)]
    outside = [m for m in asked if all(t.loc[m, "excess"] > margin for t in tables.values())]
    return len(tables), asked, outside


def outside_words(panels: Mapping[str, Sequence[Run]], margin: float = 0.01) -> str:
    """Whether a method is outside what shifts of CE reach on all benchmarks: a sentence.

    The protocol expects that none is. Methods with several seeds on each benchmark count.
    """
    number, asked, outside = _outside(panels, margin)
    if number < 2:
        return "Whether one is outside everywhere needs several data sets with several seeds."
    verdict = f"not as expected ({listing(outside)})" if outside else "as expected"
    return (
        f"no loss has δ above one point on all {number} benchmarks. Of the losses that share two "
        f"seeds or more with cross-entropy on each ({listing(asked) if asked else 'none yet'}), "
        f"this is {verdict}."
    )


def end_words(panels: Mapping[str, Sequence[Run]]) -> str:
    """The methods whose chosen shift is the largest that was tried: a sentence, or none."""
    parts = []
    for title, runs in panels.items():
        at_end = [
            method
            for method, members in by_method(run for run in runs if run.record).items()
            if (shift := best_shift(members))[1] in (min(TRIED[shift[0]]), max(TRIED[shift[0]]))
        ]
        if at_end:
            parts.append(f"{listing(at_end)} on {title}")
    if not parts:
        return ""
    return f"The chosen shift is the largest that was tried for {'; '.join(parts)}."


def own_shift_words(panels: Mapping[str, Sequence[Run]]) -> str:
    """What its own shift does to CE on the test part, and PAT beside CE as trained: sentences.

    Validation may choose a shift that lowers the test scores of CE; every method that is compared
    with it then looks better.
    """
    of_ce, of_pat = [], []
    for title, runs in panels.items():
        if shared := of_shared_seeds(runs):
            table = summary(shared)
            ce, pat = table.loc["CE"], table.loc["PAT"]
            names = ("miou", "pixel_accuracy", "tail")
            own = (signed(ce[f"shifted_{n}"] - ce[n]) for n in names)
            beside = (signed(pat[f"shifted_{n}"] - ce[n]) for n in names)
            of_ce.append(f"{', '.join(own)} on {title}")
            of_pat.append(f"{', '.join(beside)} on {title}")
    if not of_ce:
        return "PAT and cross-entropy are still to run."
    return (
        "The shift that validation chooses for cross-entropy changes its own test scores in mIoU, "
        f"pixel accuracy and tail by {'; '.join(of_ce)} points. PAT at its shift beside "
        f"cross-entropy as trained: {'; '.join(of_pat)}."
    )


def at_pixel_prior(runs: Sequence[Run]) -> pd.DataFrame:
    """The scores of each method under the prior of the pixels, in [0, 1].

    That is κ = 1: each loss that has a prior gives it back, and cross-entropy stays as it is.

    Returns:
        A row for each method whose loss has a prior: ``SCORES``, the means over its runs, and for
        those that train under another prior than the pixels', ``best_pixel_accuracy`` and
        ``best_miou``: the κ of the grid with the highest test score of each (else NaN).
    """
    rows = {}
    for method, members in by_method(run for run in runs if run.record).items():
        curve = shift_curve(members, "kappa")
        if len(curve):
            row = curve[np.isclose(curve.strength, 1)].iloc[0].drop("strength").to_dict()
            for name in ("pixel_accuracy", "miou"):
                moved = np.ptp(curve[name]) > 1e-9
                best = curve.strength[curve[name].idxmax()] if moved else np.nan
                row[f"best_{name}"] = best
            rows[method] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def prior_words(title: str, runs: Sequence[Run]) -> str:
    """Whether PAT's scores are best at the κ that the protocol expects: a sentence."""
    table = at_pixel_prior(runs)
    if "PAT" not in table.index:
        return f"{title}: PAT is still to run."
    parts = []
    for name, (words, low, high) in EXPECTED_KAPPA.items():
        best = table.loc["PAT", f"best_{name}"]
        verdict = "as expected" if low <= best <= high else "not as expected"
        if np.isclose(best, max(STRENGTHS["kappa"])):
            verdict = "not decided, since it is the largest that was tried"
        parts.append(f"{words} at κ = {best:g} (expected {low:g} to {high:g}: {verdict})")
    return f"{title}: PAT has its best {listing(parts)}."


def class_changes(runs: Sequence[Run]) -> pd.DataFrame:
    """Class by class, PAT beside cross-entropy: means over the seeds, IoU in [0, 1].

    Returns:
        A row for each class, the commonest first: ``pixels`` and ``images``, the shares of the
        training pixels that are of it and of the training images that hold it; ``weight``, the
        prior that PAT trains under, m / Σ m, over that of the pixels, n / Σ n; ``CE`` and ``PAT``,
        test IoU as trained; ``CE_shifted`` and ``PAT_shifted``, at the shift that validation
        chooses. Empty without runs of both.
    """
    done = by_method(run for run in runs if run.record)
    if not {"CE", "PAT"} <= done.keys():
        return pd.DataFrame()
    first = done["PAT"][0]
    n = np.array(first.record.result["class_counts"], dtype=float)
    m = np.array(first.class_images, dtype=float)
    table = pd.DataFrame(
        {
            "pixels": n / n.sum(),
            "images": m / first.record.provenance["num_images"]["train"],
            "weight": (m / m.sum()) / (n / n.sum()),
        },
        index=first.record.result["class_names"],
    )
    for method in ("CE", "PAT"):
        chosen = best_shift(done[method])
        for name, shift in ((method, ("tau", 0.0)), (f"{method}_shifted", chosen)):
            runs_of = done[method]
            iou = [scores_of_counts(shifted_counts(run, *shift), {})["iou"] for run in runs_of]
            table[name] = np.mean(np.array(iou, dtype=float), axis=0)
    return table.sort_values("pixels", ascending=False)


def class_words(panels: Mapping[str, Sequence[Run]]) -> str:
    """How far the change of each class follows the weight that PAT's prior gives it: a sentence."""
    parts = []
    for title, runs in panels.items():
        table = class_changes(runs)
        if len(table) >= FEWEST:
            ranks = table.weight.rank()
            found = (
                f"{ranks.corr((table[f'PAT{s}'] - table[f'CE{s}']).rank()):+.2f}".replace("-", "−")
                for s in ("", "_shifted")
            )
            parts.append(f"{' → '.join(found)} on {title} ({len(table)} classes)")
    if not parts:
        return "PAT and cross-entropy are still to run."
    return (
        "Rank correlation (Spearman) of the two, as trained → both shifted: "
        f"{'; '.join(parts)}. It is +1 if PAT's gain always grows with the weight of a class in "
        "its prior, and 0 if the two are not correlated."
    )


def _two_columns(number: int, height: float) -> tuple[Figure, list]:
    """A figure with this many axes, two side by side, each of this height in inches."""
    rows = (number + 1) // 2
    figure, axes = subplots(rows, min(number, 2), height * rows + 0.6)
    for axis in axes.flat[number:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:number])


def plot_trade_off(panels: Mapping[str, Sequence[Run]], x: str = "miou") -> Figure | None:
    """Tail against mIoU, or the head, over the shift by τ: a line for each method.

    A large mark is the method as trained, an open ring the shift that validation chooses.

    Args:
        panels: title -> runs; methods without a record are left out.
        x: ``"miou"`` or ``"head"``.

    Returns:
        The figure, or None if nothing was run.
    """
    done = {t: by_method(r for r in runs if r.record) for t, runs in panels.items()}
    done = {title: methods for title, methods in done.items() if methods}
    if not done:
        return None
    figure, axes = _two_columns(len(done), 4.4)
    colors, markers = method_styles(m for methods in done.values() for m in methods)
    named = {}  # a loss that several benchmarks have stands in the legend once
    for axis, (title, methods) in zip(axes, done.items(), strict=True):
        for method, members in methods.items():
            curve = 100 * shift_curve(members, "tau").set_index("strength")
            style = dict(color=colors[method], linewidth=2)
            axis.plot(curve[x], curve["tail"], **style)
            start = curve.loc[0.0]
            mark = dict(marker=markers[method], markersize=8, **style)
            axis.plot(start[x], start["tail"], **mark)
            named[method] = Line2D([], [], label=method, **mark)
            kind, strength = best_shift(members)
            chosen = 100 * shift_curve(members, kind).set_index("strength").loc[strength]
            ring = dict(facecolors="none", edgecolors=colors[method], linewidths=2)
            axis.scatter(chosen[x], chosen["tail"], s=150, **ring)
        name = {"miou": "test mIoU (%)", "head": "test IoU of the head (%)"}[x]
        axis.set(title=title, xlabel=name, ylabel="test IoU of the tail (%)")
        axis.grid(alpha=0.3)
    figure.legend(handles=list(named.values()), loc="outside lower center", ncols=3)
    return figure


def plot_pixel_accuracy(panels: Mapping[str, Sequence[Run]]) -> Figure | None:
    """Pixel accuracy over κ, which moves each loss from its own prior to that of the pixels.

    Only methods whose prior is another one. If a network estimates under the prior that its loss
    says, its line is highest at κ = 1.
    """
    curves = {}
    for title, runs in panels.items():
        for method, members in by_method(r for r in runs if r.record).items():
            curve = shift_curve(members, "kappa")
            if len(curve) and np.ptp(curve.pixel_accuracy) > 1e-9:
                curves.setdefault(title, {})[method] = curve
    if not curves:
        return None
    figure, axes = _two_columns(len(curves), 3.6)
    colors, markers = method_styles(m for methods in curves.values() for m in methods)
    named = {}
    for axis, (title, methods) in zip(axes, curves.items(), strict=True):
        for method, curve in methods.items():
            style = dict(color=colors[method], marker=markers[method], label=method)
            at = curve.strength, 100 * curve.pixel_accuracy
            (named[method],) = axis.plot(*at, linewidth=2, **style)
        axis.axvline(1, color="black", linestyle="--", linewidth=1)
        axis.set(title=title, xlabel="κ", ylabel="test pixel accuracy (%)")
        axis.grid(alpha=0.3)
    figure.legend(handles=list(named.values()), loc="outside lower center", ncols=3)
    return figure


def plot_class_changes(panels: Mapping[str, Sequence[Run]]) -> Figure | None:
    """IoU of PAT minus that of cross-entropy, over how much more PAT weighs the class."""
    tables = {title: class_changes(runs) for title, runs in panels.items()}
    tables = {title: table for title, table in tables.items() if len(table)}
    if not tables:
        return None
    figure, axes = subplots(len(tables), 1, 4.6 * len(tables))
    for axis, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        for suffix, label, fill in (("", "as trained", True), ("_shifted", "both shifted", False)):
            change = 100 * (table[f"PAT{suffix}"] - table[f"CE{suffix}"])
            color = "#332288" if fill else "#cc5f00"
            style = dict(facecolors=color if fill else "none", edgecolors=color, s=60, label=label)
            axis.scatter(table.weight, change, linewidths=2, **style)
            if fill:
                height = max(np.ptp(change), 1e-9)
                placed = []  # names so far; one to the right of another goes below its point
                points = table.assign(change=change).sort_values("weight")
                for name, x, y in points[["weight", "change"]].itertuples():
                    close = any(
                        abs(np.log(x / other)) < 0.5 and abs(y - level) < 0.07 * height
                        for other, level in placed
                    )
                    where = dict(xytext=(5, -13 if close else 4), textcoords="offset points")
                    axis.annotate(name, (x, y), fontsize=9, **where)
                    placed.append((x, y))
        axis.axhline(0, color="black", linestyle="--", linewidth=1)
        axis.set(title=title, xscale="log", ylabel="IoU of PAT minus CE (points)")
        axis.margins(x=0.15)  # room for the names
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("share of the class in PAT's prior, over its share of the pixels")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
