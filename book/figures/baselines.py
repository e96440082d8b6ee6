"""Against the baselines: which losses differ from cross-entropy, which may be the best, where."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from figures import network_name
from figures.judging import MARGINS, NAMES, Judged, text, verdict
from patlib.metrics import class_groups
from patlib.study.runs import Run, by_method
from patlib.study.wording import listing, signed

#: how a simulated study draws the scatter between seeds -> its name
SCATTERS = {
    "one for all": "the same for all losses",
    "each its own": "different for each loss",
}
FLAT = 0.005  # the rise of validation mIoU in the last tenth of a run that counts as none


def left_out(
    panels: Mapping[str, Sequence[Run]],
    judged: Mapping[str, Judged],
    unjudged: Sequence[str],
    resamples: int = 2000,
) -> str:
    """Which methods of the short runs are left out, why, and what it would change to judge them.

    Args:
        panels: title -> runs of a benchmark.
        judged: the same, judged without ``unjudged``.
        unjudged: the methods.
        resamples: of :class:`figures.judging.Judged`.

    Returns:
        Sentences; nothing if none of the methods was run.
    """
    scatter, changed, names = {}, [], []
    for title, runs in panels.items():
        done = by_method(run for run in runs if run.record)
        here = [method for method in unjudged if method in done]
        names += [method for method in here if method not in names]
        for method in here:
            tail = [run.score("tail") for run in done[method]]
            scatter[title] = max(scatter.get(title, 0.0), max(tail) - min(tail))
        if here:
            every = Judged(runs, resamples=resamples)
            for metric in NAMES:
                words = [of.verdict("PAT", metric) for of in (judged[title], every)]
                if words[0] != words[1]:
                    changed.append(f"{NAMES[metric]} on {title}, {words[0]} → {words[1]}")
    if not names:
        return ""
    where = max(scatter, key=scatter.get)
    return (
        f"{listing(names)} is left out of the short runs: on {where} its tail differs by "
        f"{100 * scatter[where]:.1f} points from seed to seed, and the model pools the scatter of "
        "all losses. This was decided after the scores were seen. With it in the model, the "
        f"verdict on PAT against cross-entropy would change in: {'; '.join(changed) or 'nothing'}."
    )


def verdict_words(
    found: Mapping[str, Sequence[tuple[str, float]]], phrases: Mapping[str, str]
) -> str:
    """The benchmarks by their verdicts: ``lower on A (−1.2); equal on B ...``.

    Args:
        found: verdict -> name of a benchmark with its difference, and the difference, of each.
            Of three that are not distinguishable, or more, the number and the range are told.
        phrases: verdict -> words, in the order in which they are told.
    """
    number = sum(map(len, found.values()))
    parts = []
    for word, phrase in phrases.items():
        if word == "not distinguishable" and len(found.get(word, [])) > 2:
            means = sorted(mean for _, mean in found[word])
            which = "all" if len(means) == number else "the other"
            ends = f"{signed(means[0])} to {signed(means[-1])}"
            parts.append(f"{phrase} on {which} {len(means)} ({ends})")
        elif word in found:
            parts.append(f"{phrase} on {listing(named for named, _ in found[word])}")
    return "; ".join(parts)


def answer(judged: Mapping[str, Judged], metric: str, method: str = "PAT") -> str:
    """Whether a method scores higher than cross-entropy, benchmark by benchmark: one sentence."""
    found = defaultdict(list)
    for title, of in judged.items():
        if said := of.verdict(method, metric):
            mean = of.against(metric)[method].mean
            found[said].append((f"{title} ({signed(mean)})", mean))
    if not found:
        return f"{method} and cross-entropy are still to run"
    phrases = {
        "higher": "higher than that of cross-entropy",
        "lower": "lower than that of cross-entropy",
        "equal": f"equal to that of cross-entropy within {100 * MARGINS[metric]:.0f} points",
        "not judged": "not judged, with one seed,",
        "not distinguishable": "not distinguishable from that of cross-entropy",
    }
    return f"The {NAMES[metric]} of {method} is {verdict_words(found, phrases)}"


def answer_best(judged: Mapping[str, Judged], method: str = "PAT") -> str:
    """A method beside the other one with the highest score, benchmark by benchmark: a sentence."""
    parts = []
    for metric, name in NAMES.items():
        found = defaultdict(list)
        for title, of in judged.items():
            if contrast := of.beside_best(metric, method):
                said = f"{title} ({contrast.reference}, {signed(contrast.mean)})"
                found[verdict(contrast, metric)].append((said, contrast.mean))
        if found:
            order = ("higher", "lower", "equal", "not judged", "not distinguishable")
            said = verdict_words(found, {word: word for word in order})
            parts.append(f"the {name} of {method} is {said}")
    if not parts:
        return "No other loss has two seeds yet"
    return f"Compared with the other loss with the highest mean, {'; and '.join(parts)}"


def best(judged: Mapping[str, Judged]) -> list[list[str]]:
    """The losses that may be the best, a row for each benchmark that has several seeds.

    Returns:
        Benchmark, the losses for each of ``NAMES``, and those with one seed, which are not judged.
    """
    return [
        [title, *(", ".join(found.may_be_best(m)) for m in NAMES), ", ".join(found.single)]
        for title, found in judged.items()
        if len(found.several) > 1
    ]


#: the columns of :func:`contrasts`
CONTRASTS = [
    "data, network, loss",
    "mIoU minus that of CE",
    "tail minus that of CE",
    "seeds with a higher mIoU, of those of both",
]


def contrasts(judged: Mapping[str, Judged]) -> list[list[str]]:
    """Every loss minus cross-entropy: rows of a table."""
    rows = []
    for title, found in judged.items():
        of_metrics = {metric: found.against(metric) for metric in NAMES}
        for method, contrast in of_metrics["miou"].items():
            texts = [text(of[method], metric) for metric, of in of_metrics.items()]
            seeds = f"{contrast.wins:g} of {contrast.seeds}" if contrast.seeds else ""
            rows.append([f"{title}, {method}", *texts, seeds])
    return rows


#: the columns of :func:`primary`
PRIMARY = [
    "data, network, score",
    "CE → PAT (%)",
    "PAT minus CE",
    "the same, from these two alone",
    "PAT minus the best other loss",
]


def primary(panels: Mapping[str, Sequence[Run]], judged: Mapping[str, Judged]) -> list[list[str]]:
    """The primary comparisons of the protocol, in points: rows of a table.

    Args:
        panels: title -> runs of a benchmark.
        judged: the same, judged.
    """
    rows = []
    for title, found in judged.items():
        for metric, name in NAMES.items():
            contrast = found.against(metric).get("PAT")
            if contrast is None:
                continue
            alone, best = found.alone(metric), found.beside_best(metric)
            rows.append(
                [
                    f"{title}, {name}",
                    pair_of_means(panels[title], metric),
                    text(contrast, metric),
                    text(alone, metric) if alone else "",
                    f"{best.reference}, {text(best, metric)}" if best else "",
                ]
            )
    return rows


def rises(runs: Iterable[Run]) -> dict[str, float]:
    """Method -> by how much its validation mIoU rises in the last tenth of the run.

    The mean of the last tenth of the epochs minus that of the tenth before, and over the seeds.
    """
    found = defaultdict(list)
    for run in runs:
        if run.record:
            curve = np.array(run.record.result["curves"]["validation_miou"], dtype=float)
            n = max(1, len(curve) // 10)
            found[run.method].append(curve[-n:].mean() - curve[-2 * n : -n].mean())
    return {method: float(np.mean(values)) for method, values in found.items()}


def not_flat(panels: Mapping[str, Iterable[Run]]) -> str:
    """Which curves still rise by the protocol's rule: a sentence."""
    rising, any_run = [], False
    for title, runs in panels.items():
        of_methods = rises(runs)
        any_run |= bool(of_methods)
        if names := [m for m, rise in of_methods.items() if rise > FLAT]:
            rising.append(f"{title}: {listing(names)}")
    if not any_run:
        return "Nothing was run yet."
    if not rising:
        return "No curve rises by more than half a point in the last tenth of its run."
    return (
        "These curves still rise by more than half a point in the last tenth of their runs: "
        f"{'; '.join(rising)}."
    )


def pair_of_means(runs: Iterable[Run], metric: str, method: str = "PAT") -> str:
    """``50.5 → 47.8``: CE and a method, means over the seeds that both have, in percent."""
    done = by_method(run for run in runs if run.record)
    scores = [{r.seed: r.score(metric) for r in done.get(m, [])} for m in ("CE", method)]
    seeds = set.intersection(*(set(of) for of in scores))
    return " → ".join(f"{100 * np.mean([of[s] for s in seeds]):.1f}" for of in scores if seeds)


def lengths(runs: Iterable[Run]) -> list[list[str]]:
    """CE and PAT at each length that CE was run with: rows of a table.

    The means are over the seeds that both have, or over those of CE where PAT was not run. A run
    that several grids have counts once; of two runs of a seed in different precisions the later
    in the order of ``runs`` counts.
    """
    by_length: dict = defaultdict(lambda: defaultdict(dict))
    for run in {run.planned.name: run for run in runs if run.record}.values():
        key = (run.benchmark, network_name([run]), run.planned.settings["epochs"])
        by_length[key][run.planned.settings["loss"]][run.seed] = run
    rows = []
    for (benchmark, network, epochs), found in sorted(by_length.items()):
        seeds = sorted(found["ce"].keys() & found["pat"].keys() if found["pat"] else found["ce"])
        if seeds:
            row = [f"{benchmark} with {network}, {epochs}", len(seeds)]
            for metric in NAMES:
                ce, *pat = (
                    np.mean([found[loss][seed].score(metric) for seed in seeds])
                    for loss in ("ce", "pat")
                    if found[loss]
                )
                row += [
                    f"{100 * ce:.1f} → {f'{100 * pat[0]:.1f}' if pat else 'not run'}",
                    signed(pat[0] - ce) if pat else "",
                ]
            rows.append(row)
    return rows


def length_words(rows: Iterable[Sequence]) -> str:
    """PAT minus cross-entropy in the tail after runs of several lengths: a sentence, or none.

    Args:
        rows: of :func:`lengths`; those with one seed are left out.
    """
    changes: dict[str, list[str]] = defaultdict(list)
    for title, seeds, *_, change in rows:
        if seeds > 1 and change:
            where, epochs = title.rsplit(", ", 1)
            changes[where].append(f"{change} after {epochs} epochs")
    parts = [f"{listing(of)} on {where}" for where, of in changes.items() if len(of) > 1]
    if not parts:
        return ""
    return f"By the length of the runs, the tail of PAT minus that of CE is {'; '.join(parts)}."


def tail_rises(runs: Iterable[Run], study: int = 100) -> str:
    """Whether the tail of cross-entropy still rises in runs longer than the study's: sentences.

    Args:
        runs: of the pilot on the length; one seed of each length.
        study: epochs of the study.
    """
    tails: dict[str, dict[int, float]] = defaultdict(dict)
    for run in runs:
        if run.record and run.planned.settings["loss"] == "ce":
            tails[str(run.benchmark)][run.planned.settings["epochs"]] = run.score("tail")
    parts = []
    for title, of in tails.items():
        longest = max(of)
        if study in of and longest > study:
            ends = f"{100 * of[study]:.1f} to {100 * of[longest]:.1f} %"
            parts.append((of[longest] - of[study], f"from {ends} on {title} (after {longest})"))
    if not parts:
        return ""
    said = "; ".join(text for _, text in parts)
    end = (
        ": part of PAT's gain may be that rare classes are learned earlier."
        if max(rise for rise, _ in parts) > 0.01
        else "."
    )
    return (
        f"The number of epochs was chosen by a rule on mIoU alone. Beyond {study} epochs, the tail "
        f"of cross-entropy changes, with one seed, {said}{end}"
    )


def class_changes(runs: Iterable[Run], method: str = "PAT") -> pd.DataFrame:
    """IoU of each class: means over the seeds, the commonest class first.

    Returns:
        A row for each class: ``share`` of the training pixels, ``CE``, the method, ``change``, in
        [0, 1]. Empty if one of the two was not run.
    """
    done = by_method(run for run in runs if run.record)
    if not {"CE", method} <= done.keys():
        return pd.DataFrame()
    result = done["CE"][0].record.result
    counts = np.array(result["class_counts"], dtype=float)
    iou = {m: np.mean([run.score("iou") for run in done[m]], axis=0) for m in ("CE", method)}
    table = pd.DataFrame({"share": counts / counts.sum(), **iou}, index=result["class_names"])
    table["change"] = table[method] - table["CE"]
    return table.sort_values("share", ascending=False)


def gains_and_losses(runs: Iterable[Run], method: str = "PAT", least: float = 0.01) -> str:
    """Who gains and who loses by a point or more, the largest first: words."""
    table = class_changes(runs, method)
    if table.empty:
        return "not run"
    order = table["change"].sort_values()

    def named(changes: pd.Series) -> str:
        return (
            listing(f"{name} {signed(v)}" for name, v in changes.items())
            if len(changes)
            else "none"
        )

    return f"gain: {named(order[order >= least][::-1])}; lose: {named(order[order <= -least])}"


def tail_classes(panels: Mapping[str, Sequence[Run]]) -> dict:
    """The IoU of each class of the tail, the mean over the seeds: columns of a table."""
    columns = {}
    for title, runs in panels.items():
        done = by_method(run for run in runs if run.record)
        if not done:
            continue
        result = next(iter(done.values()))[0].record.result
        shares = 100 * np.array(result["class_counts"]) / sum(result["class_counts"])
        for c in class_groups(result["class_counts"])["tail"]:
            where = f"{title}, {result['class_names'][c]} ({shares[c]:.2g} %)"
            for method, members in done.items():
                iou = np.mean([100 * run.score("iou")[c] for run in members])
                columns.setdefault(method, {})[where] = f"{iou:.1f}"
    return columns


def calibration(path) -> list[list[str]]:
    """Rows of ``calibration.json``: data, network and score, scatter, how often intervals hold."""
    rows = []
    for title, by_metric in json.loads(path.read_text()).items():
        for metric, by_scatter in by_metric.items():
            for scatter, found in by_scatter.items():
                names = ("all_intervals_hold", "wrong_sign", "best_is_kept")
                shares = [f"{100 * found[name]:.1f}" for name in names]
                rows.append([f"{title}, {NAMES[metric]}", SCATTERS[scatter], *shares])
    return rows


def drawn_studies(path) -> str:
    """How many studies were drawn for each row of :func:`calibration`: ``400``."""
    by_title = json.loads(path.read_text()).values()
    numbers = {f["studies"] for of in by_title for kinds in of.values() for f in kinds.values()}
    return listing(map(str, sorted(numbers)))


def calibration_words(path) -> str:
    """How often all intervals contain the truth, by the scatter that is drawn: sentences."""
    low: dict[str, list[str]] = defaultdict(list)
    kinds: dict[str, None] = {}
    for title, by_metric in json.loads(path.read_text()).items():
        for metric, by_scatter in by_metric.items():
            for scatter, found in by_scatter.items():
                kinds[scatter] = None
                share, studies = found["all_intervals_hold"], found["studies"]
                if share < 0.95 - 2 * (0.95 * 0.05 / studies) ** 0.5:  # not by chance
                    low[scatter].append(f"{NAMES[metric]} on {title} ({100 * share:.0f} %)")
    parts = [
        f"where the scatter between seeds is {SCATTERS[kind]}, they reach it"
        + (f" except for the {listing(low[kind])}" if low[kind] else "")
        for kind in kinds
    ]
    return (
        f"Their nominal coverage is 95 %; {'; '.join(parts)}." if parts else "None was drawn yet."
    )
