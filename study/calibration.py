"""Do the study's intervals hold what they promise? python study/calibration.py

Studies are drawn from the records of ``grids/small/table1.yaml`` as if these were the truth: a test
part by drawing groups of test images, and for each method and seed a score with the scatter that
the records have. Each drawn study is judged as ours are (``patlib.study.simultaneous``). Written to
``study/records/calibration.json``, for each data set, score and number of seeds: the share of drawn
studies in which all intervals against cross-entropy hold the true differences (0.95), in which a
method is called higher or lower with the wrong sign, and in which the best method is among those
that may be the best. What other drives or rooms than the recorded ones would bring is not in it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from patlib.files import write_text  # noqa: E402
from patlib.metrics import class_groups  # noqa: E402
from patlib.records import format_json  # noqa: E402
from patlib.study.runs import Run, by_benchmark, by_method, load_runs  # noqa: E402
from patlib.study.simultaneous import MethodScores, group_weights, score_methods  # noqa: E402
from patlib.study.statistics import mean_iou  # noqa: E402

GRID, RECORDS = ROOT / "study" / "grids" / "small" / "table1.yaml", ROOT / "study" / "records"
LEFT_OUT = ("LDAM",)  # fails on some seeds: its scatter is not that of the others
RESAMPLES = 300  # of each drawn test part
SEEDS = (3, 5, 8)
METRICS = ("miou", "tail")


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


def calibrate(runs: Sequence[Run], seeds: int, studies: int) -> dict[str, dict[str, float]]:
    """Draw and judge studies of a benchmark with this number of seeds, in each of ``METRICS``."""
    rng = np.random.default_rng(0)
    of_methods = {m: members[0] for m, members in by_method(runs).items()}
    counts = {m: run.images(("counts",))["counts"].astype(float) for m, run in of_methods.items()}
    first = of_methods["CE"]
    tail = class_groups(first.record.result["class_counts"])["tail"]
    classes = {"miou": None, "tail": tail}
    scatter = {m: score_methods(runs, m, resamples=10).residual_std for m in METRICS}
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
            of_seeds = rng.normal(0, scatter[metric], seeds)
            scores, resampled = {}, {}
            for method, part in parts.items():
                mean = float(mean_iou(part.sum(0), classes[metric]))
                noise = of_seeds + rng.normal(0, scatter[metric], seeds)
                scores[method] = dict(enumerate(mean + noise))
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
    return {
        metric: {"methods": len(counts), "studies": studies}
        | {name: number / studies for name, number in of_metric.items()}
        for metric, of_metric in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=400, help="drawn for each number of seeds")
    options = parser.parse_args()
    found = {}
    runs = [run for run in load_runs(GRID, RECORDS / "runs") if run.method not in LEFT_OUT]
    for benchmark, members in by_benchmark(runs).items():
        by_seeds = {str(n): calibrate(members, n, options.studies) for n in SEEDS}
        of_benchmark = {m: {n: of[m] for n, of in by_seeds.items()} for m in METRICS}
        found[str(benchmark)] = of_benchmark
        print(benchmark, of_benchmark, flush=True)
    print(write_text(RECORDS / "calibration.json", format_json(found)))


if __name__ == "__main__":
    main()
