"""Against the baselines: which losses are best, and the classes of the tail."""

from collections.abc import Mapping, Sequence

import numpy as np

from patlib.data import DATASETS
from patlib.metrics import class_groups
from patlib.study.runs import Run, by_method, summarize
from patlib.study.statistics import compare
from patlib.study.wording import listing


def rank(runs: Sequence[Run], resamples: int = 2000, block: int = 1) -> dict | None:
    """The best losses of one benchmark, in mIoU and in the mean IoU of the tail.

    Returns:
        None until every method has runs. Else ``seeds`` (the smallest number of runs of a method),
        and for ``miou`` and ``tail`` each a dict: ``best`` (the method with the highest mean),
        ``means`` (method -> mean), ``equals`` (the methods not called lower than the best, itself
        among them) and ``pat`` (:class:`~patlib.study.statistics.Difference` of PAT to CE, or
        None).
    """
    tables = {metric: summarize(runs, metric) for metric in ("miou", "tail")}
    if not tables["miou"].n.all():
        return None
    row = {"seeds": tables["miou"].n.min()}
    for metric, table in tables.items():
        best = table["mean"].idxmax()

        def equal(method, best=best, metric=metric):
            difference = compare(runs, method, best, metric, resamples, block)
            return difference is None or difference.verdict != "lower"

        row[metric] = dict(
            best=best,
            means=table["mean"].to_dict(),
            equals=[method for method in table.index if method == best or equal(method)],
            pat=compare(runs, "PAT", "CE", metric, resamples, block),
        )
    return row


def recommend(ranked: Mapping[str, Mapping], metric: str) -> str:
    """Which loss should I use? A sentence for one metric.

    Args:
        ranked: title of a benchmark -> what :func:`rank` returns.
        metric: ``"miou"`` or ``"tail"``.
    """
    what = {"miou": "mean IoU over all classes", "tail": "mean IoU of the rare third"}[metric]
    if not ranked:
        return f"For the {what} there is no answer yet: on no data set has every loss been run"
    equals = {title: row[metric]["equals"] for title, row in ranked.items()}
    common = [m for m in next(iter(equals.values())) if all(m in some for some in equals.values())]
    names = listing(equals)
    best = "the best, or not shown to be worse than the best,"
    if common:
        verb = "are" if len(common) > 1 else "is"
        return f"For the {what}: {listing(common)} {verb} {best} on {names}"
    each = "; ".join(f"on {title} {listing(some)}" for title, some in equals.items())
    return f"For the {what} no loss is {best} on all of {names}: {each}"


def tail_classes(benchmarks: Mapping[str, Sequence[Run]]) -> tuple[dict, list[str]]:
    """The IoU of each class of the tail, the mean over the seeds.

    Args:
        benchmarks: name of a data set -> its runs.

    Returns:
        Columns of :func:`figures.columns_table`; and the classes that a loss never finds, such as
        ``sign on CamVid (CE and LDAM)``.
    """
    columns, unseen = {}, []
    for name, runs in benchmarks.items():
        done = by_method(run for run in runs if run.record)
        if not done:
            continue
        result = next(iter(done.values()))[0].record.result
        shares = 100 * np.array(result["class_counts"]) / sum(result["class_counts"])
        for c in class_groups(result["class_counts"])["tail"]:
            where = f"{DATASETS[name].label}, {result['class_names'][c]} ({shares[c]:.2g} %)"
            iou = {m: [100 * run.score("iou")[c] for run in tried] for m, tried in done.items()}
            for method, values in iou.items():
                columns.setdefault(method, {})[where] = f"{np.mean(values):.1f}"
            if lost := [method for method, values in iou.items() if max(values) < 0.05]:
                where = f"{result['class_names'][c]} on {DATASETS[name].label}"
                unseen.append(f"{where} ({listing(lost)})")
    return columns, unseen
