"""Do the study's intervals hold what they promise? python study/calibration.py

Studies are drawn from the records of settings A and B (PROTOCOL.md) as if these were the truth,
with the losses and the seeds that the study has: a test part by drawing groups of test images, and
for each method and seed a score with the scatter that the records have. The scatter between seeds
is either one for all methods, as the intervals suppose, or each method's own. Each drawn study is
judged as ours are (``patlib.study.simultaneous``).

Written to ``study/records/calibration.json``, for each benchmark, score and scatter: the share of
drawn studies in which all intervals against cross-entropy hold the true differences (0.95), in
which a method is called higher or lower with the wrong sign, and in which the best method is among
those that may be the best. What other drives or rooms than the recorded ones would bring is not in
it.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from patlib.data import DATASETS  # noqa: E402
from patlib.files import write_text  # noqa: E402
from patlib.metrics import class_groups  # noqa: E402
from patlib.models import MODELS  # noqa: E402
from patlib.records import format_json  # noqa: E402
from patlib.study.runs import Run, by_benchmark, by_method, load_runs  # noqa: E402
from patlib.study.simultaneous import MethodScores, group_weights, score_methods  # noqa: E402
from patlib.study.statistics import mean_iou  # noqa: E402

GRIDS, RECORDS = ROOT / "study" / "grids" / "small", ROOT / "study" / "records"
STUDY = ("segnet.yaml", "unet.yaml")
RESAMPLES = 300  # of each drawn test part
METRICS = ("miou", "tail")
SCATTERS = ("one for all", "each its own")


def drawn_images(group_sizes: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, list]:
    """The images of a test part drawn by groups, in order, and its group sizes."""
    weights, number = group_weights(group_sizes, 2, seed=int(rng.integers(2**31)))
    starts = np.cumsum([0, *group_sizes[:-1]])
    if number == len(group_sizes):  # whole groups
        times = weights[0, starts].astype(int)
        order = np.repeat(np.arange(number), times)
        images = [np.arange(starts[g], starts[g] + group_sizes[g]) for g in order]
        return np.concatenate(images), [group_sizes[g] for g in order]
    return np.repeat(np.arange(weights.shape[1]), weights[0].astype(int)), list(group_sizes)


def scatter_of(judged: MethodScores, own: bool) -> dict[str, float]:
    """Standard deviation of the scores of each method over seeds, what all share taken off.

    Args:
        judged: the recorded scores.
        own: each method's own, scaled so that their mean square is the pooled variance; else the
            pooled one for all.
    """
    pooled = dict.fromkeys(judged.methods, judged.residual_std)
    if not own:
        return pooled
    means = {m: np.mean(list(of.values())) for m, of in judged.scores.items()}
    off = {m: {s: y - means[m] for s, y in of.items()} for m, of in judged.scores.items()}
    seeds = {s for of in off.values() for s in of}
    shared = {s: np.mean([of[s] for of in off.values() if s in of]) for s in seeds}
    squares = {m: np.mean([(e - shared[s]) ** 2 for s, e in of.items()]) for m, of in off.items()}
    scale = judged.residual_std / math.sqrt(np.mean(list(squares.values())))
    return {m: scale * math.sqrt(square) for m, square in squares.items()}


def calibrate(runs: Sequence[Run], own: bool, studies: int) -> dict[str, dict[str, float]]:
    """Draw and judge studies with the methods and seeds of a benchmark, in each of ``METRICS``.

    Args:
        runs: of one benchmark; methods with fewer than two records are left out.
        own: each method has its own scatter.
        studies: how many are drawn.
    """
    rng = np.random.default_rng(0)
    done = by_method(run for run in runs if run.record)
    done = {method: members for method, members in done.items() if len(members) > 1}
    every = [run for members in done.values() for run in members]
    counts = {
        m: members[0].images(("counts",))["counts"].astype(float) for m, members in done.items()
    }
    first = done["CE"][0]
    tail = class_groups(first.record.result["class_counts"])["tail"]
    classes = {"miou": None, "tail": tail}
    seeds = sorted({run.seed for run in every})
    scatter, of_seeds = {}, {}
    for metric in METRICS:
        judged = score_methods(every, metric, resamples=10)
        scatter[metric], of_seeds[metric] = scatter_of(judged, own), judged.residual_std
    truth = {
        metric: {m: float(mean_iou(c.sum(0), classes[metric])) for m, c in counts.items()}
        for metric in METRICS
    }
    found = {
        m: dict.fromkeys(("all_intervals_hold", "wrong_sign", "best_is_kept"), 0) for m in METRICS
    }
    for _ in range(studies):
        images, sizes = drawn_images(first.test_groups, rng)
        weights, number = group_weights(sizes, RESAMPLES, seed=int(rng.integers(2**31)))
        parts = {method: count[images] for method, count in counts.items()}
        summed = {
            method: (weights @ part.reshape(len(part), -1)).reshape(-1, *part.shape[1:])
            for method, part in parts.items()
        }
        for metric in METRICS:
            shared = dict(zip(seeds, rng.normal(0, of_seeds[metric], len(seeds)), strict=True))
            scores, resampled = {}, {}
            for method, part in parts.items():
                mean = float(mean_iou(part.sum(0), classes[metric]))
                scores[method] = {
                    run.seed: mean + shared[run.seed] + rng.normal(0, scatter[metric][method])
                    for run in done[method]
                }
                resampled[method] = mean_iou(summed[method], classes[metric])
            judged = MethodScores(scores, resampled, number)
            true = truth[metric]
            contrasts = [(c, true[c.method] - true["CE"]) for c in judged.against("CE")]
            of_metric = found[metric]
            of_metric["all_intervals_hold"] += all(c.low <= t <= c.high for c, t in contrasts)
            of_metric["wrong_sign"] += any(
                (c.low > 0 and t < 0) or (c.high < 0 and t > 0) for c, t in contrasts
            )
            of_metric["best_is_kept"] += max(true, key=true.get) in judged.may_be_best()
    numbers = sorted({len(members) for members in done.values()})
    return {
        metric: {"methods": len(counts), "seeds": numbers, "studies": studies}
        | {name: number / studies for name, number in of_metric.items()}
        for metric, of_metric in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=400, help="drawn for each kind of scatter")
    options = parser.parse_args()
    found = {}
    for grid in STUDY:
        for benchmark, runs in by_benchmark(load_runs(GRIDS / grid, RECORDS / "runs")).items():
            several = [len(m) > 1 for m in by_method(r for r in runs if r.record).values()]
            if sum(several) < 2:
                continue
            title = f"{DATASETS[benchmark.dataset].label} with {MODELS[benchmark.model].label}"
            by_scatter = {
                name: calibrate(runs, name == "each its own", options.studies) for name in SCATTERS
            }
            found[title] = {m: {name: of[m] for name, of in by_scatter.items()} for m in METRICS}
            print(title, found[title], flush=True)
    print(write_text(RECORDS / "calibration.json", format_json(found)))


if __name__ == "__main__":
    main()
