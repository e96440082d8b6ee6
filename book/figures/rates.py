"""The learning rate of each loss: the trials that choose one, and runs at the rate chosen."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from figures.judging import NAMES, Judged, text
from patlib.data import DATASETS
from patlib.study.runs import Benchmark, Run, by_benchmark, by_method
from patlib.study.wording import listing, signed


def trial_rows(trials: pd.DataFrame) -> list[list[str]]:
    """Validation mIoU at each learning rate, in percent, the highest in bold: rows of a table.

    Args:
        trials: of ``study/rates.py``; data sets and methods without a trial are left out.
    """
    rows = []
    for (dataset, method), scores in trials.drop(columns="chosen").iterrows():
        if scores.notna().any():
            best = scores.max()
            texts = ["" if np.isnan(s) else f"{100 * s:.1f}" for s in scores]
            whole = scores.notna().all()
            texts = [_bold(t, whole and s == best) for t, s in zip(texts, scores, strict=True)]
            rows.append([f"{DATASETS[dataset].label}, {method}", *texts])
    return rows


def trial_words(trials: pd.DataFrame, rate: float = 0.001) -> str:
    """Whether each loss at its own rate changes what it is beside CE: a sentence.

    Args:
        trials: of ``study/rates.py``.
        rate: that of the study.
    """
    parts = []
    for dataset in trials.index.unique(0):
        table = trials.loc[dataset]
        whole = table.drop(columns="chosen").dropna()
        if "CE" not in whole.index or len(whole) < 2:
            continue
        own = whole.max(axis=1)
        said = [
            f"{method} {signed(whole[rate][method] - whole[rate]['CE'])} and "
            f"{signed(own[method] - own['CE'])}"
            for method in whole.index.drop("CE")
        ]
        parts.append(f"{listing(said)} on {DATASETS[dataset].label}")
    if not parts:
        return "The trials that tell are still to come."
    return (
        f"Validation mIoU minus that of cross-entropy, in points, all at {rate:g} and each at its "
        f"own best rate: {'; '.join(parts)}."
    )


def at_chosen_rates(
    panels: Mapping[str, Sequence[Run]], others: Sequence[Run], trials: pd.DataFrame
) -> dict[str, list[Run]]:
    """The panels with each loss at the rate that its trials chose; losses without trials stay.

    Args:
        panels: title -> runs of a benchmark, all at one rate.
        others: the same losses at other rates.
        trials: of ``study/rates.py``.

    Returns:
        Title -> runs. Left out are benchmarks in which a loss has no two runs at the rate chosen.
    """
    moved, found = by_benchmark(others), {}
    for title, runs in panels.items():
        (benchmark,) = by_benchmark(runs)
        if benchmark not in moved or benchmark.dataset not in trials.index.unique(0):
            continue
        chosen, again = trials.loc[benchmark.dataset, "chosen"], by_method(moved[benchmark])
        taken, whole = [], True
        for method, of in by_method(runs).items():
            if method in chosen:
                every = [*of, *again.get(method, [])]
                of = [run for run in every if _rate(run) == chosen[method]]
                whole &= sum(run.record is not None for run in of) > 1
            taken += of
        if whole:
            found[title] = taken
    return found


def of_same_seeds(
    panels: Mapping[str, Sequence[Run]], moved: Mapping[str, Sequence[Run]]
) -> dict[str, list[Run]]:
    """The benchmarks of ``moved`` at one rate, with the seeds that each loss has there.

    Args:
        panels: title -> runs of a benchmark, all at one rate.
        moved: of :func:`at_chosen_rates`.
    """
    found = {}
    for title, runs in moved.items():
        kept = {(run.method, run.seed) for run in runs if run.record}
        found[title] = [run for run in panels[title] if (run.method, run.seed) in kept]
    return found


def _rate(run: Run) -> float:
    return run.planned.settings["learning_rate"]


def _shared(
    panels: Mapping[str, Sequence[Run]], others: Sequence[Run]
) -> dict[tuple[Benchmark, str], dict[float, list[Run]]]:
    """Benchmark and method -> rate -> its runs, of the seeds that have a record at every rate."""
    by_key: dict = defaultdict(lambda: defaultdict(dict))
    for run in [*(run for of in panels.values() for run in of), *others]:
        if run.record:
            by_key[run.benchmark, run.method][_rate(run)][run.seed] = run
    found = {}
    for key, by_rate in by_key.items():
        seeds = sorted(set.intersection(*(set(of) for of in by_rate.values())))
        if seeds and len(by_rate) > 1:
            found[key] = {r: [of[s] for s in seeds] for r, of in sorted(by_rate.items())}
    return found


def _mean(runs: Sequence[Run], metric: str) -> float:
    return float(np.mean([run.score(metric) for run in runs]))


def rate_scores(
    panels: Mapping[str, Sequence[Run]], others: Sequence[Run], trials: pd.DataFrame
) -> tuple[list[str], list[list[str]]]:
    """The test scores of each loss at the rates that it was run with, in percent, in bold the
    rate that its trials chose: header and rows of a table.

    The means are over the seeds that all rates have. See :func:`at_chosen_rates` for the arguments.
    """
    shared = _shared(panels, others)
    rates = sorted({rate for by_rate in shared.values() for rate in by_rate})
    header = ["data, loss", *(f"{NAMES[m]}, rate {rate:g}" for m in NAMES for rate in rates)]
    rows = []
    for (benchmark, method), by_rate in shared.items():
        chosen = trials["chosen"].get((benchmark.dataset, method))
        texts = [
            _bold(f"{100 * _mean(by_rate[rate], m):.1f}", rate == chosen)
            for m in NAMES
            for rate in rates
        ]
        rows.append([f"{benchmark}, {method}", *texts])
    return header, rows


def effect_words(
    panels: Mapping[str, Sequence[Run]], others: Sequence[Run], trials: pd.DataFrame
) -> str:
    """What the rate that was chosen does to the test mIoU of the losses themselves: a sentence.

    Of the losses whose trials chose another rate than that of the study. See
    :func:`at_chosen_rates` for the arguments.
    """
    said = defaultdict(list)
    for (benchmark, method), by_rate in _shared(panels, others).items():
        chosen = trials["chosen"].get((benchmark.dataset, method))
        (before,) = {_rate(r) for of in panels.values() for r in of if r.benchmark == benchmark}
        if chosen in by_rate and chosen != before:
            change = _mean(by_rate[chosen], "miou") - _mean(by_rate[before], "miou")
            said[str(benchmark)].append(f"of {method} by {signed(change)}")
    if not said:
        return ""
    parts = "; ".join(f"on {name}, that {listing(of)}" for name, of in said.items())
    return f"The chosen rate alone changes the mIoU on the test part, in points: {parts}."


def _bold(said: str, bold: bool) -> str:
    return f"<b>{said}</b>" if bold else said


#: the columns of :func:`rate_contrasts`
CONTRASTS = ["data, network, loss, score", "minus that of CE, all at 0.001", "each at its rate"]

SCORES = {**NAMES, "head": "IoU of the head", "pixel_accuracy": "pixel accuracy"}


def rate_contrasts(
    judged: Mapping[str, Judged], chosen: Mapping[str, Judged], methods: Sequence[str]
) -> list[list[str]]:
    """Losses minus cross-entropy, all at one rate and each at its own: rows of a table.

    Args:
        judged: title -> the benchmark at one rate, see :func:`of_same_seeds`.
        chosen: the same at the chosen rates, see :func:`at_chosen_rates`.
        methods: that have trials.
    """
    return [
        [f"{title}, {method}, {name}"]
        + [text(of.against(metric)[method], metric) for of in (judged[title], found)]
        for title, found in chosen.items()
        for method in methods
        if method in found.against("miou")
        for metric, name in SCORES.items()
    ]


def chosen_words(
    judged: Mapping[str, Judged], chosen: Mapping[str, Judged], method: str = "PAT"
) -> str:
    """What a loss is beside cross-entropy, each at its own rate, and whether that is another
    verdict: sentences.

    Args:
        judged, chosen: see :func:`rate_contrasts`.
    """
    parts = []
    for title, found in chosen.items():
        said = [
            f"{signed(found.against(metric)[method].mean)} in {name} "
            f"({found.verdict(method, metric)})"
            for metric, name in NAMES.items()
        ]
        parts.append(f"{' and '.join(said)} on {title}")
    if not parts:
        return "The runs on the test part at the rates that were chosen are still to come."
    changed = verdict_changes(judged, chosen, method)
    verdicts = (
        f"Verdicts that change with the rate: {'; '.join(changed)}."
        if changed
        else "No verdict changes with the rate."
    )
    return (
        f"On the test part, each at the rate that its trials chose, {method} minus cross-entropy "
        f"is {'; '.join(parts)}. {verdicts}"
    )


def verdict_changes(
    judged: Mapping[str, Judged], chosen: Mapping[str, Judged], method: str = "PAT"
) -> list[str]:
    """The verdicts on a loss beside cross-entropy that differ: phrases.

    Args:
        judged, chosen: see :func:`rate_contrasts`.
    """
    return [
        f"{name} on {title}, {before} → {word}"
        for title, found in chosen.items()
        for metric, name in SCORES.items()
        if (word := found.verdict(method, metric))
        != (before := judged[title].verdict(method, metric))
    ]
