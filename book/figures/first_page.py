"""The first page of the book and the README: the answer in a figure and three sentences.

``book/first_page.py`` writes what these functions return into both. All of it follows from records.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import GRIDS, epochs_of, what_holds
from figures.judging import MARGINS, Judged, text, verdict
from patlib.data import DATASETS
from patlib.plots.panels import subplots
from patlib.study.runs import Run, by_benchmark, by_method, load_runs
from patlib.study.simultaneous import Contrast
from patlib.study.wording import listing, signed, signed_end

#: The settings that are shown: network and grid.
SETTINGS = (("SegNet", "small/segnet.yaml"), ("a pretrained U-Net", "small/unet.yaml"))
#: What the claims are judged by: the study, and the shorter runs from before.
STUDY, SHORT = [grid for _, grid in SETTINGS], ["small/table1.yaml"]
UNJUDGED = ["LDAM"]  # of the short runs, fails on some seeds
RESAMPLES = 2000  # test parts that the bootstrap draws

METRICS = {"miou": "mIoU", "head": "head", "tail": "tail"}  # panels of the figure
#: score -> its name: what the table of choices says of a loss
CHANGES = {"tail": "tail", "miou": "mIoU", "pixel_accuracy": "pixel accuracy"}
NAMED = 4  # of more losses than that which may also be the best, the number
KEEPING = "rare classes; mIoU and pixel accuracy not shown to be lower"
AIMS = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "tail": "rare classes (tail)"}
COLORS = ("#1b1b1b", "#cc5f00", "#0072b2", "#7a7a7a")  # of data sets
MARKERS = "os^D"  # of networks
FARTHEST = 20.0  # points: what lies beyond is drawn at the edge, as an arrow
WIDE = 4.0  # an interval this many times as wide as the median one leaves its panel
#: data set -> what a reader of its scores must know
PARTIAL = {
    "Oxford-IIIT Pet": "of Oxford-IIIT Pet three of 37 breeds were at hand, and its tail is one "
    "class, the boundary"
}
#: which of tail and mIoU is higher -> how that is said
ONLY = {"tail": "only the tail", "miou": "only mIoU", None: "neither"}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Compared:
    """One data set with one network: its methods beside cross-entropy.

    Attributes:
        network, data: their names.
        runs: those with a record.
        judged: the methods, judged against each other.
        planned: all runs of the grid.
    """

    network: str
    data: str
    runs: list[Run]
    judged: Judged
    planned: list[Run]

    def change(self, method: str, metric: str) -> Contrast | None:
        """A method minus cross-entropy, see :meth:`figures.judging.Judged.against`."""
        return self.judged.against(metric).get(method)

    def decided(self, metric: str, method: str = "PAT") -> str | None:
        """The verdict on a method against cross-entropy; None if it is not judged."""
        found = self.judged.against(metric).get(method)
        word = found and verdict(found, metric)
        return None if word == "not judged" else word


def compare(
    records: Path,
    settings: Sequence[tuple[str, str]] = SETTINGS,
    resamples: int = RESAMPLES,
) -> list[Compared]:
    """The comparisons of all settings, also those of which nothing was run."""
    found = []
    for network, grid in settings:
        for benchmark, planned in by_benchmark(load_runs(GRIDS / grid, records)).items():
            runs = [run for run in planned if run.record]
            judged = Judged(planned, resamples=resamples)
            data = DATASETS[benchmark.dataset].label
            found.append(Compared(network, data, runs, judged, planned))
    return found


def _grouped(compared: Iterable[tuple[Compared, str]]) -> str:
    """Benchmarks in words, by network: ``with SegNet on CamVid (+6.5) and NYUv2 (+5.4)``."""
    parts = defaultdict(list)
    for c, said in compared:
        parts[c.network].append(f"{c.data} ({said})")
    return ", and ".join(f"with {network} on {listing(names)}" for network, names in parts.items())


def _verdicts(compared: Sequence[Compared], metric: str) -> dict[str, list]:
    """Verdict on PAT -> the benchmarks with it, and PAT minus cross-entropy in points."""
    found = defaultdict(list)
    for c in compared:
        if word := c.decided(metric):
            found[word].append((c, c.judged.against(metric)["PAT"].mean))
    return found


def _said(compared: Sequence[Compared], metric: str, short: bool = True) -> str:
    """What PAT does to a score: ``lower on all three of them (−11.4 to −3.5 points)``.

    Args:
        short: more than two benchmarks with the same verdict in that form; else all by name, with
            their intervals.
    """
    found = _verdicts(compared, metric)
    phrases = {
        "higher": "higher",
        "lower": "lower",
        "equal": f"equal within {100 * MARGINS[metric]:.0f} points",
        "not distinguishable": "not distinguishable",
    }
    number = sum(map(len, found.values()))
    parts = []
    for word, phrase in phrases.items():
        of = found.get(word, [])
        if short and len(of) > 2:
            values = sorted(mean for _, mean in of)
            ends = f"{signed(values[0])} to {signed(values[-1])} points"
            which = f"all {_number(number)} of them" if len(of) == number else _of(len(of), number)
            parts.append(f"{phrase} on {which} ({ends})")
        elif of:
            parts.append(f"{phrase} {_grouped((c, _points(c, metric, short)) for c, _ in of)}")
    return "; ".join(parts)


def _points(compared: Compared, metric: str, short: bool) -> str:
    """PAT minus cross-entropy: ``+5.0``, or ``+5.0: +0.2 to +9.8`` with its interval."""
    found = compared.judged.against(metric)["PAT"]
    ends = f": {signed_end(found.low)} to {signed_end(found.high)}"
    return f"{signed(found.mean)}{'' if short else ends}"


def _of(part: int, number: int) -> str:
    return f"{_number(part)} of the {_number(number)}"


def _number(n: int) -> str:
    return NUMBERS[n] if n < len(NUMBERS) else str(n)


def sentences(compared: Sequence[Compared]) -> list[str]:
    """Does PAT help rare classes, at what price, and does a loss do it without: a sentence each.

    Args:
        compared: see :func:`compare`.
    """
    tail = _verdicts(compared, "tail")
    number = sum(map(len, tail.values()))
    said = []
    if not number:
        said.append("Not decided yet: PAT and cross-entropy have no two seeds on any data set.")
    else:
        higher, lower = (len(tail.get(word, [])) for word in ("higher", "lower"))
        lead = "Yes" if higher == number else "On some data" if higher else "No"
        lead = "It harms them" if lower == number else lead
        said.append(
            f"{lead}: with PAT in the place of cross-entropy, the IoU of the rarest third of the"
            " classes (the tail) is, in points with 95 % intervals,"
            f" {_said(compared, 'tail', short=False)}."
        )
        lost = [m for m in ("head", "pixel_accuracy", "miou") if "lower" in _verdicts(compared, m)]
        lead = "Its price" if lost else "No price is shown"
        said.append(
            f"{lead}: the IoU of the commonest third (the head) is {_said(compared, 'head')};"
            f" pixel accuracy is {_said(compared, 'pixel_accuracy')}; mIoU is"
            f" {_said(compared, 'miou')}."
        )
        said.append(_better_in_both(compared))
    return said


def _better_in_both(compared: Sequence[Compared]) -> str:
    """The losses with a higher tail and a higher mIoU than cross-entropy, and where."""

    def scores(c: Compared, method: str) -> str:
        means = (_means([c], method, metric)[0] for metric in ("tail", "miou"))
        return "tail {}, mIoU {}".format(*map(signed, means))

    judged = [c for c in compared if c.decided("tail")]
    found = defaultdict(list)
    for c in judged:
        for method in c.judged.methods:
            if c.decided("tail", method) == c.decided("miou", method) == "higher":
                found[method].append((c, scores(c, method)))
    if not found:
        return "No loss is shown to raise both the tail and mIoU above those of cross-entropy."
    parts = []
    for method, of in found.items():
        shown = {id(c) for c, _ in of}
        rest = [c for c in judged if id(c) not in shown]
        words = []
        for c in rest:
            if method in c.judged.several:
                higher = (m for m in ("tail", "miou") if c.decided(m, method) == "higher")
                words.append(ONLY[next(higher, None)])
            else:
                words.append("one seed" if method in c.judged.single else "not run")
        told = [f"{word} on {_number(words.count(word))}" for word in dict.fromkeys(words)]
        elsewhere = f", of the other {_number(len(rest))} {listing(told)}" if told else ""
        if len(rest) == 1:
            elsewhere = f", on the other {words[0]}"
        parts.append(f"{method} {_grouped(of)}{elsewhere}")
    every = len({id(c) for of in found.values() for c, _ in of}) == len(judged)
    end = "" if every else "; no other loss that was run is shown to be higher in both"
    return f"Tail and mIoU are both shown to be higher for {'; '.join(parts)}{end}."


def how_sure(compared: Sequence[Compared], rate_changes: Sequence[str] | None = None) -> str:
    """Seeds, image sizes, lengths, what is still to run, and what depends on the model: a list.

    Args:
        compared: of :func:`compare`.
        rate_changes: the verdicts on PAT that differ at other learning rates, see
            :func:`figures.rates.verdict_changes`; None where there are no such runs.
    """
    parts = []
    judged = [c for c in compared if c.decided("tail")]
    if seeds := [len(of) for c in judged for of in by_method(c.runs).values() if len(of) > 1]:
        low, high = min(seeds), max(seeds)
        of_seeds = f"{low} to {high} seeds" if low < high else f"{low} seeds"
        parts.append(f"95 % intervals over {of_seeds} and over test images")
    if sizes := [run.planned.settings["image_size"] for c in compared for run in c.runs]:
        largest = " x ".join(map(str, max(sizes, key=math.prod)))
        parts.append(f"images of {largest} pixels and less")
    lengths = {c.network: epochs_of(c.runs) for c in compared if c.runs}
    if lengths:
        parts.append(listing(f"{network} for {epochs}" for network, epochs in lengths.items()))
    for network in dict.fromkeys(c.network for c in compared):
        of_network = [c for c in compared if c.network == network]
        planned = [run for c in of_network for run in c.planned]
        done = sum(run.record is not None for run in planned)
        if done < len(planned):
            parts.append(f"with {network}, {done} of {len(planned)} runs are done")
            single = [(c, c.change("PAT", "tail")) for c in of_network if not c.decided("tail")]
            if said := [f"{c.data} (tail {signed(f.mean)})" for c, f in single if f]:
                parts[-1] += f", one seed on {listing(said)}, which is not judged"
            # Residuals of the model method + seed: with one degree of freedom t is 12.7.
            few = [c.data for c in of_network if c.decided("tail") and _degrees(c) == 1]
            if few:
                parts[-1] += (
                    f", of {listing(few)} two losses with two seeds in common, so that how far "
                    "seeds scatter is hardly known and intervals are wide or narrow by chance"
                )
    data = dict.fromkeys(c.data for c in compared if c.runs)
    parts += [PARTIAL[name] for name in data if name in PARTIAL]
    if said := _pooling(judged):
        parts.append(said)
    if rate_changes is not None:
        found = "; ".join(rate_changes) if rate_changes else "none"
        parts.append(
            "all losses train at one learning rate; at the rates that trials chose for some of "
            "them, compared over the same seeds, these verdicts on PAT are different: "
            f"{found}"
        )
    return "How sure is that?\n\n" + "\n".join(f"- {part[0].upper()}{part[1:]}." for part in parts)


def _pooling(judged: Sequence[Compared]) -> str:
    """Where the verdict on PAT depends on pooling the scatter of all losses: a sentence."""
    said = []
    for metric, name in (("tail", "the tail"), ("miou", "mIoU")):
        for c in judged:
            alone = c.judged.alone(metric)
            if alone and verdict(alone, metric) != c.decided(metric):
                ends = f"{signed_end(alone.low)} to {signed_end(alone.high)}"
                said.append(
                    f"{name} with {c.network} on {c.data} is {verdict(alone, metric)} ({ends})"
                )
    if not said:
        return ""
    return (
        "the scatter between seeds is pooled over all losses; estimated from cross-entropy and "
        f"PAT alone, it changes these verdicts: {'; '.join(said)}"
    )


def _degrees(compared: Compared) -> int:
    """Degrees of freedom of the scatter between seeds, in the model method + seed."""
    seeds = [len(of) for of in by_method(compared.runs).values() if len(of) > 1]
    return sum(n - 1 for n in seeds) - (max(seeds) - 1)


def choices(compared: Sequence[Compared]) -> list[list[str]]:
    """Which loss to take: aim, network and data; loss; what ``CHANGES`` it brings there.

    Of the losses that may be the best on every data set (Hsu's comparison with the best),
    cross-entropy is taken where it is among them, else the one with the highest mean; the others
    are named beside it.
    ``KEEPING``, where mIoU and pixel accuracy must not fall, is answered by :func:`_keeping`. Data
    sets on which a method has no two seeds do not count.
    """
    rows = []
    for metric, aim in (*AIMS.items(), (None, KEEPING)):
        for network in dict.fromkeys(c.network for c in compared):
            of_network = [c for c in compared if c.network == network and c.decided("tail")]
            if judged := [c for c in of_network if c.judged.complete]:
                data = listing(c.data for c in judged)
                where = f"{aim}: {network.removeprefix('a ')}, {data}"
                taken = _best(judged, metric) if metric else _keeping(judged)
                rows += [[where if n == 0 else "", *row] for n, row in enumerate(taken)]
    return rows


def _best(judged: Sequence[Compared], metric: str) -> list[list[str]]:
    best = {c.data: c.judged.may_be_best(metric) for c in judged}
    first, *others = best.values()
    common = [m for m in first if all(m in of for of in others)]
    if not common:
        each = "; ".join(f"{data}: {', '.join(methods)}" for data, methods in best.items())
        return [[f"depends on the data: {each}", ""]]
    ranked = sorted(common, key=lambda m: (m != "CE", -np.mean(_means(judged, m, metric))))
    taken, *ties = ranked
    return [[f"{taken}{_also(ties)}", _changes(judged, taken)]]


def _also(ties: Sequence[str]) -> str:
    """The others that may be the best."""
    if not ties:
        return ""
    few = len(ties) <= NAMED
    names = "; ".join(ties) if few else f"{_number(len(ties))} others"  # a name may have a comma
    return f" (may also be the best: {names})"


def _keeping(judged: Sequence[Compared]) -> list[list[str]]:
    """The loss with the highest tail of those that are shown to be lower in none of ``CHANGES``.

    Its tail must be shown to be higher than that of cross-entropy on one data set at least.
    """
    methods = [m for m in judged[0].judged.methods if all(c.decided("tail", m) for c in judged)]
    words = {
        m: [{metric: c.decided(metric, m) for metric in CHANGES} for c in judged] for m in methods
    }
    kept = [
        m
        for m, of in words.items()
        if any(w["tail"] == "higher" for w in of) and not any("lower" in w.values() for w in of)
    ]
    if not kept:
        return [["no loss is shown to do that", ""]]
    best, *others = sorted(kept, key=lambda m: -np.mean(_means(judged, m, "tail")))
    also = f" (as well: {'; '.join(others)})" if others else ""
    return [[f"{best}{also}", _changes(judged, best)]]


def _means(judged: Sequence[Compared], method: str, metric: str) -> list[float]:
    """A method minus cross-entropy on each data set; 0 for cross-entropy itself."""
    return [0.0 if method == "CE" else c.judged.against(metric)[method].mean for c in judged]


def _changes(judged: Sequence[Compared], method: str) -> str:
    return "; ".join(_ends(_means(judged, method, metric)) for metric in CHANGES)


def _ends(values: Sequence[float]) -> str:
    """``+3.1 to +8.1``, or one number."""
    ends = list(dict.fromkeys(signed(v) for v in (min(values), max(values))))
    return " to ".join(ends)


def verdict_counts(study: what_holds.Evidence, short: what_holds.Evidence, claims) -> list[list]:
    """How many claims have each verdict: the word, by the study's runs, by the short runs."""
    words = [
        [what_holds.judge(claim["id"], evidence).word for claim in claims]
        for evidence in (study, short)
    ]
    every = (
        *(what_holds.HOLDS, what_holds.IN_PART, what_holds.UNDECIDED, what_holds.FAILS),
        *(what_holds.OPEN, what_holds.UNTESTED),
    )
    return [[word, *(str(of.count(word)) for of in words)] for word in every]


def holding_words(study: what_holds.Evidence, claims) -> str:
    """The claims that hold by the study's runs, as printed, with their tallies: a sentence."""
    verdicts = {claim["says"].strip(): what_holds.judge(claim["id"], study) for claim in claims}
    held = [
        f"{says} ({verdict.tally})" if verdict.tally else says
        for says, verdict in verdicts.items()
        if verdict.word == what_holds.HOLDS
    ]
    return f"What holds by the study: {'; '.join(held)}." if held else "No claim holds."


def scale_words(records: Path) -> str:
    """What no verdict uses: sentences for below the counts.

    Args:
        records: the folder.
    """
    grids = sorted((GRIDS / "paper").glob("*.yaml"))
    done = sum(run.record is not None for grid in grids for run in load_runs(grid, records))
    scale = (
        "No verdict uses a run at the paper's image sizes, on its splits, or on Cityscapes: "
        "*does not hold* refers only to runs at small scale."
    )
    return (
        f"{'' if done else scale + ' '}All losses train at the same learning rate; the paper says "
        "that it tunes each loss."
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Raises:
        ValueError: a row has another number of cells than the header.
    """
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"each row must have {len(header)} cells, got {rows}")
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def caption(compared: Sequence[Compared]) -> str:
    """What the figure shows, and which methods have one seed."""
    text = (
        "Each loss minus cross-entropy (CE), in percentage points: mIoU, and the mean IoU of the "
        "commonest (head) and rarest (tail) third of the classes. Lines: 95 % intervals over seeds "
        "and test images, simultaneous for all losses of a data set, for each score separately. "
        "Filled: the interval excludes 0; hollow: it contains 0."
    )
    if any(_limits(compared, metric)[2] for metric in METRICS):
        text += " A line that reaches the edge of its panel is longer."
    by_methods = defaultdict(list)
    for c in compared:
        if c.judged.single:
            by_methods[tuple(c.judged.single)].append(f"{c.data} with {c.network}")
    if by_methods:
        said = (f"{listing(methods)} on {listing(where)}" for methods, where in by_methods.items())
        text += f" Without a line, one seed and not judged: {'; '.join(said)}."
    return text


def _limits(compared: Sequence[Compared], metric: str) -> tuple[float, float, bool]:
    """The ends of a panel in points, and whether an interval leaves it.

    One with a very wide interval, of two losses with two seeds, would hide the differences of the
    others.
    """
    changes = [found for c in compared for m in _methods([c]) if (found := c.change(m, metric))]
    judged = [found for found in changes if not math.isnan(found.low)]
    widest = WIDE * float(np.median([f.high - f.low for f in judged])) if judged else 0.0
    kept = [found for found in judged if found.high - found.low <= widest]
    ends = [v for f in kept for v in (f.low, f.high)] + [f.mean for f in changes] + [0.0]
    low, high = np.clip([100 * min(ends), 100 * max(ends)], -FARTHEST, FARTHEST)
    pad = 0.05 * (high - low) + 0.1
    return low - pad, high + pad, len(kept) < len(judged)


def numbers(compared: Sequence[Compared]) -> str:
    """What the figure is drawn from, to a tenth of a point: a line for each mark."""
    lines = []
    for c in compared:
        for method in _methods([c]):
            found = [c.change(method, metric) for metric in METRICS]
            if all(found):
                said = "; ".join(text(f, m) for f, m in zip(found, METRICS, strict=True))
                lines.append(f"{c.data}, {c.network}, {method}: {said}")
    return "\n".join(lines)


def _methods(compared: Sequence[Compared]) -> list[str]:
    """PAT, then the others in the order of the grids."""
    every = dict.fromkeys(run.method for c in compared for run in c.runs)
    every.pop("CE", None)
    return sorted(every, key=lambda method: method != "PAT")


def plot_answer(compared: Sequence[Compared]) -> Figure | None:
    """Every method minus cross-entropy in mIoU, head and tail: a mark for each data set.

    Returns:
        The figure, narrow enough to be read on a telephone; None if there is nothing to compare.
    """
    marks = {
        method: [c for c in compared if c.change(method, "miou")] for method in _methods(compared)
    }
    marks = {method: of for method, of in marks.items() if of}
    if not marks:
        return None
    shown = [c for c in compared if any(c in of for of in marks.values())]
    data = dict(zip(dict.fromkeys(c.data for c in shown), COLORS, strict=False))
    networks = dict(zip(dict.fromkeys(c.network for c in shown), MARKERS, strict=False))
    rows = sum(len(of) + 1 for of in marks.values())
    figure, axes = subplots(1, len(METRICS), 0.125 * rows + 1.25, width=5.4, sharey=True, dpi=150)
    for axis, (metric, name) in zip(axes[0], METRICS.items(), strict=True):
        y, middles = 0.0, []
        for number, (method, of) in enumerate(marks.items()):
            if number % 2 == 0:
                axis.axhspan(y - 0.9, y + len(of) - 0.1, color="#f0f0f0", zorder=0, linewidth=0)
            for c in of:
                _mark(axis, y, c.change(method, metric), data[c.data], networks[c.network])
                y += 1
            middles.append(y - (len(of) + 1) / 2)
            y += 1
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlim(*_limits(compared, metric)[:2])
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(name, fontsize=10)
        axis.tick_params(labelsize=9)
    axes[0, 0].set_yticks(middles, marks)
    axes[0, 0].get_yticklabels()[0].set_fontweight("bold")
    axes[0, 0].set_ylim(y - 0.5, -1.2)
    axes[0, 1].set_xlabel("minus that of CE (percentage points)", fontsize=9)
    mark = dict(linestyle="", markersize=6)
    handles = [Line2D([], [], color=c, marker="o", label=d, **mark) for d, c in data.items()]
    grey = dict(color="#7a7a7a", **mark)
    handles += [Line2D([], [], marker=m, label=n, **grey) for n, m in networks.items()]
    hollow = dict(marker="o", markerfacecolor="white", **grey)
    handles.append(Line2D([], [], label="interval contains 0", **hollow))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def _mark(axis, y: float, change: Contrast, color: str, marker: str) -> None:
    low, mean, high = (100 * v for v in (change.low, change.mean, change.high))
    single = math.isnan(change.low)
    if abs(mean) > FARTHEST:
        edge = math.copysign(FARTHEST, mean)
        arrow = "<" if mean < 0 else ">"
        sure = not single and (low > 0 or high < 0)
        axis.plot(edge, y, arrow, color=color, markerfacecolor=color if sure else "white")
        return
    if not single:
        ends = np.clip([low, high], -FARTHEST, FARTHEST)
        axis.hlines(y, *ends, color=color, linewidth=1.4)
    sure = not single and (low > 0 or high < 0)
    face = color if sure else "white"
    axis.plot(mean, y, marker, markersize=5, color=color, markerfacecolor=face)
