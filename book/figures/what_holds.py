"""The claims of the paper and their verdicts, each by its rule in ``study/claims.yaml``."""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from IPython.display import HTML
from matplotlib.figure import Figure
from scipy import stats

from figures import GRIDS, ROOT, harmless, load_paper, load_script, network_name, read_panels
from figures.judging import Judged
from figures.rates import at_chosen_rates, of_same_seeds
from figures.temperature import score_range
from patlib.data import DATASETS
from patlib.losses import build_loss
from patlib.plots.panels import subplots
from patlib.study.paper import check_statement
from patlib.study.runs import Benchmark, Run, by_benchmark, by_method, load_runs, scores
from patlib.study.simultaneous import Contrast
from patlib.study.statistics import expected_range
from patlib.study.wording import listing, signed, signed_end

HOLDS, IN_PART, FAILS = "holds", "holds in part", "does not hold"
UNDECIDED = "not shown"
OPEN, UNTESTED = "still to run", "cannot be tested here"
CHANCE = 2.0  # times the range that chance gives: T matters
MORE_MEMORY, MORE_WEIGHT, ALIKE = 1.2, 1.5, 0.1


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        word: ``HOLDS``, ``IN_PART``, ``FAILS``, ``UNDECIDED``, ``OPEN`` or ``UNTESTED``.
        found: the numbers that it follows from.
        tally: on how many of our benchmarks it holds; empty where none is asked.
        of_paper: the same of those with data of the paper, where these are some of them.
    """

    word: str
    found: str
    tally: str = ""
    of_paper: str = ""


class Evidence:
    """Everything that verdicts follow from.

    Args:
        panels: title -> runs of a benchmark.
        judged: title -> the same, judged; those without several seeds of CE and PAT do not count.
        losses: the record of ``benchmarks/losses.py``.
        paper: ``study/paper.yaml``.
        temperatures: runs of PAT at several T.
        networks: runs of several networks on one data set.
        gradients: a part of ``study/records/gradients.json``: data set -> its measurements.
    """

    def __init__(
        self,
        panels: Mapping[str, Sequence[Run]],
        judged: Mapping[str, Judged],
        losses: Mapping[str, Any],
        paper: Mapping[str, Any],
        temperatures: Sequence[Run] = (),
        networks: Sequence[Run] = (),
        gradients: Mapping[str, Any] | None = None,
    ):
        self.panels = panels
        self.judged = {t: found for t, found in judged.items() if {"CE", "PAT"} <= {*found.several}}
        self.losses, self.paper = losses, paper
        self.temperatures, self.networks = temperatures, networks
        self.gradients = gradients or {}


def read_evidence(
    grids: Sequence[str],
    folder: Path,
    seeds: Sequence[int] | None = None,
    unjudged: Sequence[str] = (),
    resamples: int = 2000,
    short: bool = False,
) -> Evidence:
    """What the verdicts follow from, with the runs of these grids of ``study/grids``.

    Args:
        grids: the files.
        folder: of the records.
        seeds: those that count; None for all.
        unjudged, resamples: of :class:`figures.judging.Judged`.
        short: take several T, the networks and the gradients from short runs; else from those of
            the study.
    """
    panels = read_panels(grids, folder, seeds)
    found = Evidence(
        panels,
        {title: Judged(runs, unjudged, resamples) for title, runs in panels.items()},
        json.loads((ROOT / "benchmarks" / "records" / "losses-cpu.json").read_text()),
        load_paper(),
    )
    temperatures, networks = ("table3", "table2") if short else ("temperature", "networks")
    found.temperatures = load_runs(GRIDS / "small" / f"{temperatures}.yaml", folder, seeds)
    found.networks = load_runs(GRIDS / "small" / f"{networks}.yaml", folder, seeds)
    measured = json.loads((ROOT / "study" / "records" / "gradients.json").read_text())
    found.gradients = measured["datasets" if short else "long"]
    return found


def rows(claims: Sequence[Mapping[str, str]], study: Evidence, short: Evidence) -> list[list[str]]:
    """The ledger: claim, verdict of the study, verdict of the short runs, chapter.

    The short runs are another row of evidence for the claims about scores only.
    """
    found = []
    for claim in claims:
        verdict, earlier = judge(claim["id"], study), judge(claim["id"], short)
        same = verdict == earlier
        where = f'<a href="{claim["see"]}.html">{claim["see"].replace("_", " ")}</a>'
        found.append([claim["says"], _counted(verdict), "" if same else _counted(earlier), where])
    return found


def details(claims: Sequence[Mapping[str, str]], study: Evidence, short: Evidence) -> HTML:
    """Rule, verdicts with their numbers, and what would change our mind, claim by claim."""
    parts = []
    for claim in claims:
        verdict, earlier = judge(claim["id"], study), judge(claim["id"], short)
        lines = [("Would count", claim["counts"]), ("Verdict", _said(verdict))]
        lines += [("By the short runs", _said(earlier))] if earlier != verdict else []
        lines += [("Note", claim["note"])] if "note" in claim else []
        lines.append(("Would change our mind", claim["change"]))
        items = "".join(f"<li>{title}: {harmless(text)}</li>" for title, text in lines)
        says = harmless(f"<b>{claim['says']}</b> ({claim['where']})")
        parts.append(f'<p id="claim-{claim["id"].replace("_", "-")}">{says}</p><ul>{items}</ul>')
    return HTML("\n".join(parts))


def _counted(verdict: Verdict) -> str:
    tally = verdict.tally
    if verdict.of_paper:
        tally += f"; on the paper's data {verdict.of_paper}"
    return f"{verdict.word}{f' ({tally})' if tally else ''}"


def _said(verdict: Verdict) -> str:
    return f"<b>{verdict.word}</b>{f' ({verdict.found})' if verdict.found else ''}"


def answer(claims: Sequence[Mapping[str, str]], evidence: Evidence) -> str:
    """How many claims hold, and how many do not: a sentence."""
    words = [judge(claim["id"], evidence).word for claim in claims]
    number = {word: words.count(word) for word in (HOLDS, IN_PART, UNDECIDED, FAILS)}
    parts = [
        f"{number[HOLDS]} hold{'s' if number[HOLDS] == 1 else ''}",
        f"{number[IN_PART]} in part",
        f"{number[UNDECIDED]} {'is' if number[UNDECIDED] == 1 else 'are'} not shown",
        f"{number[FAILS]} {'does' if number[FAILS] == 1 else 'do'} not",
    ]
    rest = len(words) - sum(number.values())
    return (
        f"of {len(words)} claims {listing(parts)}; {rest} "
        f"{'is' if rest == 1 else 'are'} still to run or cannot be tested here."
    )


def read_at_chosen_rates(
    study: Evidence, folder: Path, seeds: Sequence[int] | None = None, resamples: int = 2000
) -> tuple[Evidence, Evidence] | None:
    """The evidence at one learning rate, and with each loss at the rate that its trials chose.

    Both have the same seeds of each loss, on the benchmarks that were run at the chosen rates.

    Args:
        study: the evidence at one rate, all seeds.
        folder, seeds, resamples: as for :func:`read_evidence`.

    Returns:
        None if there are no such runs yet.
    """
    again = load_runs(GRIDS / "small" / "rate003.yaml", folder, seeds)
    trials = load_script("study/rates.py").trials(records=folder)
    moved = at_chosen_rates(study.panels, again, trials)
    if not moved:
        return None
    before, after = (
        Evidence(
            {**study.panels, **of},
            {**study.judged, **{t: Judged(runs, resamples=resamples) for t, runs in of.items()}},
            study.losses,
            study.paper,
        )
        for of in (of_same_seeds(study.panels, moved), moved)
    )
    return before, after


#: the claims that compare the scores of PAT with those of cross-entropy
BESIDE_CE = ("best_miou", "best_pixel_accuracy", "size_of_gain", "rare_classes", "not_forgotten")


def rate_words(at_rates: tuple[Evidence, Evidence] | None, counts: bool = True) -> str:
    """Whether a verdict is another one with each loss at the rate that its trials chose: sentences.

    Args:
        at_rates: of :func:`read_at_chosen_rates`.
        counts: say which counts of benchmarks differ, not only that some do.
    """
    if at_rates is None:
        return "The runs at the rates that trials chose for some losses are still to come."
    words, tallies = [], []
    for claim in BESIDE_CE:
        before, after = (judge(claim, evidence) for evidence in at_rates)
        name = claim.replace("_", " ").replace("miou", "mIoU")
        if before.word != after.word:
            words.append(f"{name}, {_counted(before)} → {_counted(after)}")
        elif before.tally != after.tally:
            tallies.append(f"{name}, {before.tally} → {after.tally}")
    verdicts = (
        f"other verdicts on PAT beside cross-entropy are: {'; '.join(words)}"
        if words
        else "no claim about PAT beside cross-entropy has another verdict"
    )
    other = (
        f" (other counts of benchmarks: {'; '.join(tallies)})"
        if counts
        else "; on single benchmarks some differ"
    )
    found = f"{verdicts}{other if tallies else ''}"
    return (
        "With the losses that had trials at the rates they chose, compared with the same seeds at "
        f"one rate, {found}."
    )


def load_claims(path: Path) -> list[dict[str, str]]:
    """The claims, each with id, where, says, counts, change and see, some with a note."""
    return yaml.safe_load(path.read_text())["claims"]


def judge(claim: str, evidence: Evidence) -> Verdict:
    """The verdict on a claim, by its id."""
    return RULES[claim](evidence)


def _together(
    results: Mapping[str, bool | None], found: Mapping[str, str], of_paper: Collection[str] = ()
) -> Verdict:
    """One verdict from those of several benchmarks; None is one that cannot be told either way.

    Args:
        of_paper: the benchmarks with data of the paper, which are counted once more.
    """
    text = "; ".join(f"{title}: {said}" for title, said in found.items())
    if not results:
        return Verdict(OPEN, text)
    values = list(results.values())
    some = 0 < len(of_paper) < len(values)
    tallies = _tally(values), _tally([results[title] for title in of_paper]) if some else ""
    if any(values):
        return Verdict(HOLDS if all(values) else IN_PART, text, *tallies)
    return Verdict(UNDECIDED if set(values) == {None} else FAILS, text, *tallies)


def _tally(values: Sequence[bool | None]) -> str:
    undecided = f", {values.count(None)} undecided" if None in values else ""
    return f"{sum(map(bool, values))} of {len(values)}{undecided}"


def _against(
    evidence: Evidence,
    metric: str,
    words: Sequence[str] = ("higher",),
    reference: str = "CE",
    best: bool = False,
) -> Verdict:
    """PAT against another method: on a benchmark it holds if the verdict is one of the words.

    Args:
        best: no other method may be higher than PAT, either; where not every method has several
            seeds, this cannot be said.
    """
    results, found = {}, {}
    for title, judged in evidence.judged.items():
        if reference not in judged.several or (best and not judged.complete):
            continue
        contrast = judged.against(metric, reference)["PAT"]
        word = judged.verdict("PAT", metric, reference)
        printed = _printed_gain(evidence, title, metric) if reference == "CE" else ""
        found[title] = f"{word} ({_interval(contrast)}{printed})"
        results[title] = None if word == "not distinguishable" else word in words
        if best and results[title]:
            results[title] = "PAT" in judged.may_be_best(metric)
    return _together(results, found, [title for title in results if _of_paper(evidence, title)])


def _of_paper(evidence: Evidence, title: str) -> bool:
    """Whether a benchmark has one of the paper's data sets."""
    (benchmark,) = by_benchmark(evidence.panels[title])
    return benchmark.dataset in evidence.paper["table1"]["pat"]


def _interval(contrast: Contrast) -> str:
    """A difference with its interval, in points, and how many seeds both have."""
    ends = f"{signed_end(contrast.low)} to {signed_end(contrast.high)}"
    return f"{signed(contrast.mean)}: {ends}, {contrast.seeds} seeds"


def _printed_gain(evidence: Evidence, title: str, metric: str) -> str:
    """What the paper prints for the same data and network, or that the data are not in it."""
    (benchmark,) = by_benchmark(evidence.panels[title])
    pat, ce = (evidence.paper["table1"][m].get(benchmark.dataset) for m in ("pat", "ce"))
    if not pat:
        return ", data not in the paper"
    if benchmark.model != "segnet" or metric not in pat:
        return ""
    return f", printed {pat[metric] - ce[metric]:+.2f}".replace("-", "−")


def size_of_gain(evidence: Evidence) -> Verdict:
    table = evidence.paper["table1"]
    printed = (table["pat"]["nyuv2"]["miou"] - table["ce"]["nyuv2"]["miou"]) / 100
    results, found = {}, {}
    for title, judged in evidence.judged.items():
        (benchmark,) = by_benchmark(evidence.panels[title])
        contrast = judged.against("miou").get("PAT")
        if contrast and (benchmark.dataset, benchmark.model) == ("nyuv2", "segnet"):
            found[title] = f"{_interval(contrast)}; printed {100 * printed:+.2f}"
            results[title] = contrast.high >= printed
    return _together(results, found)


def temperature_matters(evidence: Evidence) -> Verdict:
    results, found = {}, {}
    for benchmark, runs in by_benchmark(evidence.temperatures).items():
        shared, span, _, chance = score_range(runs)
        if shared >= 3:
            found[str(benchmark)] = (
                f"range {100 * span:.2f}, by chance {100 * chance:.2f}"
                f"{_by_all_losses(evidence, benchmark, len(by_method(runs)), shared)}"
            )
            # A range that chance may give shows that T does nothing only if all T are equal.
            results[str(benchmark)] = span > CHANCE * chance or (False if _equal(runs) else None)
    return _together(results, found)


def _equal(runs: Sequence[Run]) -> bool:
    """Whether the mIoU of all methods is equal to that of each other, by the margin."""
    judged = Judged(runs)
    words = {
        judged.verdict(method, "miou", reference)
        for method, reference in itertools.permutations(judged.methods, 2)
    }
    return words == {"equal"}


def _by_all_losses(evidence: Evidence, benchmark: Benchmark, settings: int, seeds: int) -> str:
    """The range by chance if runs scatter as those of all losses on the same benchmark do."""
    for title, judged in evidence.judged.items():
        if [*by_benchmark(evidence.panels[title])] == [benchmark]:
            std = judged.scores("miou").residual_std
            chance = expected_range(settings) * std / math.sqrt(seeds)
            return f", or {100 * chance:.2f} with the scatter of all losses"
    return ""


def architectures(evidence: Evidence) -> Verdict:
    results, found = defaultdict(list), defaultdict(list)
    judged = {t: (by_benchmark(evidence.panels[t]), found) for t, found in evidence.judged.items()}
    for benchmark, runs in by_benchmark(evidence.networks).items():
        of_runs = Judged(runs)
        if {"CE", "PAT"} <= {*of_runs.several}:
            judged[f"{benchmark} {benchmark.model}"] = ({benchmark: runs}, of_runs)
    for benchmarks, of_runs in judged.values():
        ((benchmark, runs),) = benchmarks.items()
        word = of_runs.verdict("PAT", "miou")
        if word and benchmark.model != "segnet":  # that is the first claim
            network = network_name(runs)
            results[network].append(None if word == "not distinguishable" else word == "higher")
            found[network].append(f"{word} on {benchmark}")
    return _together(
        {n: False if False in of else None if None in of else True for n, of in results.items()},
        {network: listing(of) for network, of in found.items()},
    )


def _peaks(evidence: Evidence) -> dict[str, dict[str, int]]:
    """Shape and type -> loss -> peak bytes of a step."""
    found: dict = defaultdict(dict)
    for row in evidence.losses["results"]:
        shape = "x".join(map(str, row["shape"]))
        found[f"{shape} {row['dtype']}"][row["loss"]] = row["peak_bytes"]
    return dict(found)


def memory_of_others(evidence: Evidence) -> Verdict:
    results, found = {}, {}
    for shape, peak in _peaks(evidence).items():
        others = {name: peak["pat"] / peak[name] for name in ("blv", "ldam")}
        results[shape] = max(others.values()) < 1
        found[shape] = ", ".join(f"{r:.2f} of {n.upper()}" for n, r in others.items())
    return replace(_together(results, found), tally=_at_shapes(results))


def _at_shapes(results: Mapping[str, bool]) -> str:
    return f"at {sum(results.values())} of {len(results)} shapes and types"


def memory_of_ce(evidence: Evidence) -> Verdict:
    peaks = _peaks(evidence)
    ours, as_written = (
        {shape: peak[name] / peak["F.cross_entropy"] for shape, peak in peaks.items()}
        for name in ("pat", "pat, one-hot")
    )
    found = {shape: f"{r:.2f} times PyTorch's cross-entropy" for shape, r in ours.items()}
    ends = f"{min(as_written.values()):.1f} to {max(as_written.values()):.1f} times"
    found["PAT on one-hot tensors, as the paper writes it"] = ends
    more = {shape: r > MORE_MEMORY for shape, r in ours.items()}
    less = [shape for shape, r in ours.items() if r < 1]
    tally = f"{_at_shapes(more)}; at {len(less)} PAT needs less"
    return replace(_together({"any": any(more.values())}, found), tally=tally)


def homogenised_gradients(evidence: Evidence) -> Verdict:
    words, found = [], {}
    for name, measured in evidence.gradients.items():
        last, a, ratio = {}, {}, {}
        for method in ("CE", "PAT"):
            states = measured["methods"][method]["states"]
            of_network = states[max(states, key=int)]["network"]
            last[method] = of_network["exponent"][0]
            a[method] = "{:.2f} [{:.2f}, {:.2f}]".format(*of_network["exponent"]).replace("-", "−")
            ratio[method] = f"{of_network['ratio']:.1f}"
        found[DATASETS[name].label] = (
            f"a = {a['PAT']}, with cross-entropy {a['CE']}; the largest gradient of a class is "
            f"{ratio['PAT']} times the smallest, with cross-entropy {ratio['CE']}"
        )
        if abs(last["PAT"]) <= ALIKE:
            words.append(HOLDS)
        else:
            words.append(IN_PART if abs(last["PAT"]) < abs(last["CE"]) else FAILS)
    text = "; ".join(f"{name}: {said}" for name, said in found.items())
    if not words:
        return Verdict(OPEN, text)
    return Verdict(words[0] if len(set(words)) == 1 else IN_PART, text)


def _coefficients(temperature: float) -> tuple[float, float]:
    """β of a pixel with p -> 0 and of one with p = 1, ε = 0, from the loss itself."""
    loss = build_loss(
        "pat", num_classes=2, temperature=temperature, size_exponent=0.0, reduction="none"
    )
    x = 10.0
    logits = torch.tensor([[-x, x], [x, -x]], dtype=torch.float64).reshape(1, 2, 1, 2)
    target = torch.tensor([[[0, 0]]])
    cross_entropy = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    low, high = (loss(logits, target) / cross_entropy).flatten().tolist()
    return low, high


def explosion(evidence: Evidence) -> Verdict:
    low, high = _coefficients(1.0)
    text = f"with T = 1 and ε = 0, β lies between {high:.2f} and {low:.2f} whatever the logits are"
    return Verdict(HOLDS if not math.isfinite(low) else FAILS, text)


def confident_pixels(evidence: Evidence) -> Verdict:
    low, high = _coefficients(20.0)
    ratio = low / high
    word = HOLDS if ratio >= MORE_WEIGHT else IN_PART if ratio > 1 else FAILS
    p, gamma = 0.99, 2
    pat = math.exp((1 - p) / 20)
    return Verdict(
        word,
        f"at T = 20 the ratio of the two is {ratio:.3f}; a pixel with p = {p} keeps a coefficient "
        f"of {pat:.4f} with PAT and of {(1 - p) ** gamma:.4f} with Focal (γ = {gamma})",
    )


def stability(evidence: Evidence) -> Verdict:
    squares, dof, found = defaultdict(float), defaultdict(int), {}
    for title in evidence.judged:
        by_method = scores(run for run in evidence.panels[title] if run.record).groupby("method")
        of = {m: g["score"].to_numpy() for m, g in by_method if m in ("PAT", "Focal")}
        if len(of) == 2 and all(len(values) >= 3 for values in of.values()):
            for method, values in of.items():
                squares[method] += float(((values - values.mean()) ** 2).sum())
                dof[method] += len(values) - 1
            said = (f"{m} ±{100 * of[m].std(ddof=1):.1f}" for m in ("PAT", "Focal"))
            found[title] = ", ".join(said)
    text = "; ".join(f"{title}: {said}" for title, said in found.items())
    if not found:
        return Verdict(OPEN, text)
    variance = {m: squares[m] / dof[m] for m in squares}
    p = stats.f.cdf(variance["PAT"] / variance["Focal"], dof["PAT"], dof["Focal"])
    word = HOLDS if p < 0.05 else FAILS if p > 0.95 else UNDECIDED
    return Verdict(word, f"{text}; one-sided p = {p:.2f}")


def bms_collapses(evidence: Evidence) -> Verdict:
    results, found = {}, {}
    for title, judged in evidence.judged.items():
        if "BMS" in judged.several:
            mean = {
                m: np.mean(list(judged.scores("miou").scores[m].values())) for m in ("CE", "BMS")
            }
            ratio = mean["BMS"] / mean["CE"]
            found[title] = f"{100 * ratio:.0f} % of cross-entropy's"
            results[title] = ratio < 0.5
    return _together(results, found)


def numbers_of_the_abstract(evidence: Evidence) -> Verdict:
    statements = evidence.paper["statements"]
    agree = [check_statement(evidence.paper, s)[1] for s in statements]
    in_text = [s["sentence"] for s in statements if "sentence" in s]
    word = HOLDS if all(agree) else IN_PART if any(agree) else FAILS
    return Verdict(
        word,
        f"{sum(agree)} of {len(agree)} statements agree with the tables ({len(in_text)} in "
        f"{len(set(in_text))} sentences, {len(agree) - len(in_text)} cells of Table 1)",
    )


RULES: dict[str, Callable[[Evidence], Verdict]] = {
    "best_miou": lambda e: _against(e, "miou", best=True),
    "best_pixel_accuracy": lambda e: _against(e, "pixel_accuracy", best=True),
    "size_of_gain": size_of_gain,
    "rare_classes": lambda e: _against(e, "tail"),
    "rare_classes_best": lambda e: _against(e, "tail", reference="BLV"),
    "not_forgotten": lambda e: _against(e, "head", ("higher", "equal")),
    "temperature_matters": temperature_matters,
    "temperature_and_classes": lambda e: Verdict(UNTESTED, "needs Cityscapes"),
    "architectures": architectures,
    "memory_of_others": memory_of_others,
    "memory_of_ce": memory_of_ce,
    "homogenised_gradients": homogenised_gradients,
    "explosion": explosion,
    "confident_pixels": confident_pixels,
    "stability": stability,
    "bms_collapses": bms_collapses,
    "numbers_of_the_abstract": numbers_of_the_abstract,
}


def plot_changes(judged: Mapping[str, Judged]) -> Figure | None:
    """What PAT changes beside cross-entropy: mIoU, pixel accuracy, head and tail, by benchmark.

    Returns:
        The figure, or None if nothing can be compared.
    """
    judged = {title: found for title, found in judged.items() if found.against("miou").get("PAT")}
    if not judged:
        return None
    names = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "head": "head", "tail": "tail"}
    colors = dict(zip(names, ("#1b1b1b", "#0072b2", "#332288", "#cc5f00"), strict=True))
    markers = dict(zip(names, "osD^", strict=True))
    figure, axes = subplots(1, 1, 0.75 * len(judged) + 1.4)
    axis = axes[0, 0]
    for row, found in enumerate(judged.values()):
        for number, metric in enumerate(names):
            contrast = found.against(metric)["PAT"]
            y = row + 0.18 * (number - 1.5)
            color = colors[metric]
            axis.hlines(y, 100 * contrast.low, 100 * contrast.high, color=color, linewidth=2)
            sure = contrast.low > 0 or contrast.high < 0
            style = dict(color=color, markerfacecolor=color if sure else "white", markersize=7)
            label = names[metric] if row == 0 else None
            axis.plot(100 * contrast.mean, y, markers[metric], label=label, **style)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(judged)), list(judged))
    axis.set_ylim(len(judged) - 0.5, -0.5)
    axis.set_xlabel("PAT minus CE (percentage points)")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
