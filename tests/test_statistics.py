"""Runs of a grid, the statistics of their differences, the words for them, the paper's numbers."""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from chapters import figures
from fake_runs import counts, fake_record, grid_file
from scipy import stats

from patlib import RunConfig
from patlib.metrics import SegmentationMetrics, class_groups, count_per_image
from patlib.study.grids import PlannedRun, load_grid, read_grid
from patlib.study.paper import check_bold, check_statement, describe_address, paper_number
from patlib.study.runs import (
    Benchmark,
    Run,
    by_benchmark,
    by_method,
    choose_candidates,
    chosen_settings,
    load_runs,
    missing_runs,
    summarize,
)
from patlib.study.simultaneous import score_methods
from patlib.study.statistics import (
    Difference,
    bootstrap_differences,
    chance_range,
    interval,
    mean_iou,
)
from patlib.study.wording import listing, mean_and_std, seed_count, seeds_note, signed

ROOT = Path(__file__).parents[1]
GRIDS, RECORDS = ROOT / "study" / "grids", ROOT / "study" / "records" / "runs"
PAPER = yaml.safe_load((ROOT / "study" / "paper.yaml").read_text())


def random_maps(rng, images=7, classes=4, accuracy=0.6):
    truth = rng.integers(0, classes, (images, 5, 6))
    truth[0, :, 0] = 255
    guess = rng.integers(0, classes, truth.shape)
    labels = np.where(rng.random(truth.shape) < accuracy, np.where(truth == 255, 0, truth), guess)
    return torch.from_numpy(labels), torch.from_numpy(truth)


# -- statistics -------------------------------------------------------------------------------


def bootstrap_interval(*args, **more):
    return tuple(np.quantile(bootstrap_differences(*args, **more), [0.025, 0.975]))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_bootstrap_is_that_of_metrics_over_resampled_images(block):
    rng = np.random.default_rng(0)
    sides = [random_maps(rng, accuracy=a) for a in (0.7, 0.4)]
    sides = [(labels, sides[0][1]) for labels, _ in sides]
    tables = [count_per_image(*side, 4).numpy()[None] for side in sides]
    found = bootstrap_differences(*tables, resamples=40, block=block, seed=3)

    starts = np.random.default_rng(3).integers(7, size=(40, math.ceil(7 / block), 1))[..., 0]
    differences = []
    for row in starts:
        drawn = [(start + k) % 7 for start in row for k in range(block)][:7]
        scores = []
        for labels, truth in sides:
            metrics = SegmentationMetrics(4)
            for i in drawn:
                metrics.update(labels[i : i + 1], truth[i : i + 1])
            scores.append(metrics.compute()["miou"])
        differences.append(scores[0] - scores[1])
    np.testing.assert_allclose(found, differences, atol=1e-12)


def test_bootstrap_averages_the_runs_and_looks_at_the_classes_asked_for():
    rng = np.random.default_rng(1)
    true = rng.integers(10, 90, (9, 3))
    good, bad = counts(true, true, true), counts(true // 2, true, true)
    assert bootstrap_interval(good, good) == (0.0, 0.0)
    both = np.concatenate([good, bad])
    whole, half = bootstrap_interval(good, bad), bootstrap_interval(good, both)
    np.testing.assert_allclose(half, np.array(whole) / 2, atol=1e-12)

    tail_only = true.copy()
    tail_only[:, :2] //= 2  # right on the last class alone
    other = counts(tail_only, true, true)
    assert bootstrap_interval(other, bad, classes=[0, 1]) == (0.0, 0.0)
    low, _ = bootstrap_interval(other, bad, classes=[2])
    assert low > 0.3


def test_better_on_every_image_is_above_zero_and_the_reverse_below():
    rng = np.random.default_rng(2)
    true = rng.integers(20, 200, (30, 5))
    better, worse = (counts((true * share).astype(int), true, true) for share in (0.62, 0.6))
    low, high = bootstrap_interval(better, worse, block=3)
    assert 0 < low < high
    np.testing.assert_allclose(bootstrap_interval(worse, better, block=3), (-high, -low))


def test_blocks_widen_the_interval_where_neighbours_are_alike():
    rng = np.random.default_rng(3)
    true = np.full((40, 2), 100)
    share = rng.uniform(0.2, 0.9, (40, 1))
    first, second = (true * share).astype(int), np.full((40, 2), 55)
    single = bootstrap_interval(counts(first, true, true), counts(second, true, true))
    # the same forty scenes, each filmed five times
    tables = [counts(*(np.repeat(a, 5, axis=0) for a in (f, true, true))) for f in (first, second)]
    fooled = bootstrap_interval(*tables)
    blocks = bootstrap_interval(*tables, block=5)
    widths = [high - low for low, high in (single, fooled, blocks)]
    assert widths[1] < 0.6 * widths[0]
    assert 0.75 * widths[0] < widths[2] < 1.25 * widths[0]


def test_a_class_that_is_nowhere_is_left_out():
    rng = np.random.default_rng(4)
    labels, truth = random_maps(rng, classes=3)
    metrics = SegmentationMetrics(5, [50, 40, 30, 20, 10])
    metrics.update(labels, truth)
    table = count_per_image(labels, truth, 5).numpy().sum(0)
    expected = metrics.compute()
    assert mean_iou(table) == pytest.approx(expected["miou"], abs=1e-12)
    for group, classes in class_groups([50, 40, 30, 20, 10]).items():
        score = float(mean_iou(table, classes))
        assert score == pytest.approx(expected[group], abs=1e-12, nan_ok=True)
    assert math.isnan(mean_iou(table, [3, 4]))
    # present in some images only: resampling may lose it, and the mean stays finite
    rare = np.zeros((6, 2), int)
    rare[:, 0], rare[0, 1] = 10, 10
    low, high = bootstrap_interval(counts(rare, rare, rare), counts(rare // 2, rare, rare))
    assert math.isfinite(low) and math.isfinite(high)


def test_bootstrap_refuses_what_does_not_fit():
    table = np.ones((2, 6, 3, 4), int)
    with pytest.raises(ValueError, match="same images and classes"):
        bootstrap_interval(table, table[:, :5])
    with pytest.raises(ValueError, match="same images and classes"):
        bootstrap_interval(table[0], table[0])
    for block in (0, 4):
        with pytest.raises(ValueError, match=f"block must be .*, got {block}"):
            bootstrap_interval(table, table, block=block)
    with pytest.raises(ValueError, match="resamples must be an integer >= 1, got 0"):
        bootstrap_interval(table, table, resamples=0)


def test_interval_over_seeds_and_images():
    # The one source alone: Student's interval of the seeds, the normal one of the images.
    values = [0.02, 0.05, 0.03, 0.01]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(interval(values, 0.0), expected, rtol=1e-12)
    normal = stats.norm(0.1, 0.04).interval(0.95)
    np.testing.assert_allclose(interval([0.1, 0.1], 0.04**2), normal)
    np.testing.assert_allclose(interval([0.1], 0.04**2), normal)
    assert interval([0.0, 0.0], 0.0) == (0.0, 0.0)
    # Both: it holds the truth in 95 to 98 of 100 studies, however large each is.
    rng = np.random.default_rng(6)
    for images, seeds in ((1.0, 0.2), (1.0, 1.0), (0.2, 1.0)):
        found = images * rng.normal(size=(3000, 1)) + seeds * rng.normal(size=(3000, 3))
        ends = np.array([interval(row, images**2) for row in found])
        assert 0.94 < np.mean((ends[:, 0] < 0) & (ends[:, 1] > 0)) < 0.985, (images, seeds)


def test_range_by_chance_is_that_of_draws():
    # By hand: the rest is ±0.5 in each of the four, with one degree of freedom. Two draws of a
    # normal lie 2 / sqrt(pi) of its deviation apart.
    scatter, expected = chance_range([[1, 2], [3, 6]])
    assert scatter == pytest.approx(1, abs=1e-12)
    assert expected == pytest.approx(2 / math.sqrt(math.pi) / math.sqrt(2), abs=1e-9)
    # Drawn: what the setting and the seed do is larger than the noise, and is not counted.
    rng = np.random.default_rng(5)
    setting, seed = 3 * rng.normal(size=(4, 1)), 5 * rng.normal(size=3)
    noise = 0.5 * rng.normal(size=(20000, 4, 3))
    found = np.array([chance_range(setting + seed + n) for n in noise[:2000]])
    assert np.sqrt((found[:, 0] ** 2).mean()) == pytest.approx(0.5, rel=0.03)
    ratio = found[:, 1] / found[:, 0]
    np.testing.assert_allclose(0.5 * ratio, np.ptp(noise.mean(2), axis=1).mean(), rtol=0.02)


@pytest.mark.parametrize("scores", [[[1.0, 2.0]], [[1.0], [2.0]], [1.0, 2.0]])
def test_range_by_chance_needs_two_settings_and_seeds(scores):
    with pytest.raises(ValueError, match="two or more each, got"):
        chance_range(scores)


@pytest.mark.parametrize(
    ("by_seed", "low", "high", "word"),
    [
        ({0: 0.01, 1: 0.02}, 0.005, 0.03, "higher"),
        ({0: -0.01, 1: -0.02}, -0.03, -0.005, "lower"),
        ({0: 0.01, 1: 0.02}, -0.001, 0.03, "not distinguishable"),
        ({0: 0.01, 1: 0.02}, 0.0, 0.03, "not distinguishable"),  # 0 is not left out
        ({0: 0.0, 1: 0.0}, 0.0, 0.0, "not distinguishable"),
        ({0: 0.0004, 1: 0.0004}, 0.0003, 0.0005, "not distinguishable"),  # prints as 0.0 points
        ({0: 0.01, 1: 0.02}, math.nan, math.nan, "not distinguishable"),  # nothing is known
        ({0: 0.05}, 0.04, 0.06, "not judged"),  # whatever the images say
    ],
)
def test_words_follow_from_numbers(by_seed, low, high, word):
    difference = Difference("PAT", "CE", by_seed, low, high)
    assert difference.verdict == word and word in difference.short
    assert difference.significant == (word in ("higher", "lower"))


def test_sentences_and_numbers_in_words():
    difference = Difference("PAT", "CE", {0: -0.021, 3: -0.019}, -0.0304, -0.0096)
    assert difference.short == "lower: −2.0 (−3.0 to −1.0)"
    close = Difference("PAT", "CE", {0: -0.005, 1: -0.007}, -0.011, -0.0003)
    assert close.short == "lower: −0.6 (−1.1 to −0.03)"  # not 0.0, which would not leave out 0
    assert "(0.0 to 0.0)" in Difference("PAT", "CE", {0: 0.0, 1: 0.0}, 0.0, -0.00004).short
    single = Difference("PAT", "CE", {0: 0.078}, 0.053, 0.102)
    assert single.short == "not judged: +7.8 (images alone +5.3 to +10.2)"
    assert [signed(v) for v in (0.0123, -0.0123, -0.0001, 0.0)] == ["+1.2", "−1.2", "0.0", "0.0"]
    assert listing(["a"]) == "a" and listing("abc") == "a, b and c"
    columns = dict(
        n=[2, 1, 0], planned=[3] * 3, mean=[0.5, 0.5, math.nan], std=[0.01] + 2 * [math.nan]
    )
    texts = mean_and_std(pd.DataFrame(columns, index=["a", "b", "c"]))
    assert texts == {"a": "50.0\u00a0±\u00a01.0", "b": "50.0", "c": "not run"}


def test_seeds_are_named_below_a_table():
    def table(*numbers):
        frame = pd.DataFrame(numbers, columns=["n", "planned"])
        return frame.set_axis(list("ABCD")[: len(numbers)])

    tables = {"x": table((1, 3), (2, 5), (1, 3), (0, 3)), "y": table((3, 3)), "z": table()}
    expected = "Seeds done, of those planned: x 1 of 3 (B 2 of 5); y 3 of 3; z none."
    assert seeds_note(tables) == expected


# -- runs -------------------------------------------------------------------------------------


def test_summary_of_a_grid_with_runs_missing(tmp_path):
    methods = {"CE": {"loss": "ce"}, "PAT": {"loss": "pat"}, "BMS": {"loss": "bms"}}
    grid = grid_file(tmp_path, methods)
    scores = defaultdict(list)
    for planned in load_grid(grid):
        if planned.method == "CE" or (planned.method == "PAT" and planned.settings["seed"] == 1):
            fake_record(planned, tmp_path)
            record = json.loads((tmp_path / f"{planned.name}.json").read_text())
            scores[planned.method].append(record["result"]["test"]["tail"])
    runs = load_runs(grid, tmp_path)
    table = summarize(runs, "tail")
    assert table["mean"]["CE"] == pytest.approx(statistics.mean(scores["CE"]))
    assert table["std"]["CE"] == pytest.approx(statistics.stdev(scores["CE"]))
    assert math.isnan(table["std"]["PAT"]) and math.isnan(table["mean"]["BMS"])
    assert table.n.to_dict() == {"CE": 3, "PAT": 1, "BMS": 0} and set(table.planned) == {3}
    texts = mean_and_std(table)
    assert "±" in texts["CE"] and "±" not in texts["PAT"] and texts["BMS"] == "not run"

    by = by_method(runs)
    assert seed_count(runs, "ticks") == "1 to 3 seeds (ticks)"
    assert seed_count(by["PAT"], "ticks") == "one seed"
    assert seed_count(by["BMS"]) == "no seed yet"
    assert {r.planned.settings["seed"] for r in load_runs(grid, tmp_path, seeds=[2])} == {2}
    assert load_runs(grid, tmp_path / "nowhere")[0].record is None


def test_runs_that_cannot_be_compared(tmp_path):
    methods = {"CE": {"loss": "ce"}, "PAT": {"loss": "pat"}}
    grid = grid_file(tmp_path, methods, seeds=[0])
    for planned in load_grid(grid):
        fake_record(planned, tmp_path, tested=planned.method)
    runs = load_runs(grid, tmp_path)
    with pytest.raises(ValueError, match="scored on different test images"):
        score_methods(runs, resamples=10)
    with pytest.raises(ValueError, match="metric must be one of 'miou', .*, got 'iou'"):
        score_methods(runs[:1], metric="iou")
    other = Run(read_grid({"blocks": [block_of("segnet")]})[0], runs[0].record, tmp_path)
    with pytest.raises(ValueError, match="several data sets or networks"):
        score_methods([*runs, other])
    (tmp_path / f"{runs[0].planned.name}.npz").unlink()
    with pytest.raises(FileNotFoundError, match="copy both files"):
        runs[0].images()
    twice = tmp_path / "twice.yaml"
    content = yaml.safe_load(grid.read_text())
    twice.write_text(yaml.safe_dump({"blocks": content["blocks"] * 2}))
    with pytest.raises(ValueError, match="more than once"):
        load_runs(twice, tmp_path)


def block_of(model):
    settings = dict(dataset="synthetic", image_size=[32, 40], model=model)
    return dict(settings=settings, methods={"CE": {"loss": "ce"}}, seeds=[0])


def test_a_tuned_method_is_chosen_on_validation_and_only_when_all_have_run(tmp_path):
    focal = [{"loss": "focal", "loss_params": {"gamma": g}} for g in (0.5, 1.0, 2.0)]
    grid = grid_file(tmp_path, {"CE": {"loss": "ce"}, "Focal": focal}, seeds=[0, 1])
    cells = load_grid(grid)
    # (validation of seed 0, of seed 1, bonus of the test score): the second is best on average,
    # the first on the test images, the third with one seed.
    plan = [(0.50, 0.50, 0.3), (0.58, 0.60, 0.0), (0.70, 0.40, 0.1)]
    for planned in cells:
        if planned.method == "CE":
            fake_record(planned, tmp_path)
        elif planned.candidate < 2 or planned.settings["seed"] == 0:
            *validation, bonus = plan[planned.candidate]
            fake_record(planned, tmp_path, bonus, validation[planned.settings["seed"]])
    table = summarize(load_runs(grid, tmp_path))
    assert table.n.to_dict() == {"CE": 2, "Focal": 0} and table.planned["Focal"] == 2

    *validation, bonus = plan[2]
    fake_record(cells[-1], tmp_path, bonus, validation[1])
    kept = [run for run in load_runs(grid, tmp_path) if run.method == "Focal"]
    assert [run.planned.candidate for run in kept] == [1, 1]
    assert [run.seed for run in kept] == [0, 1]
    assert chosen_settings(kept[0], cells) == "gamma 1.0"
    assert choose_candidates(kept) == kept


def test_a_benchmark_is_named_by_what_differs_from_the_usual():
    assert str(Benchmark("nyuv2", "segnet", "official", "ignore")) == "NYUv2"
    assert str(Benchmark("nyuv2", "segnet", "paper", "class")) == "NYUv2, 80/10/10 %, void a class"
    assert str(Benchmark("oxford_pet", "segnet", "official", "class")) == "Oxford-IIIT Pet"
    settings = RunConfig(data_params={"rare_size": 480, "imbalance": 100}).settings()
    drawn = Run(PlannedRun("PAT", settings), None, Path()).benchmark
    assert str(drawn) == "embedded, rare_size 480"  # 100 is the usual imbalance


@pytest.mark.parametrize("name", ["demo", "small/table3", "small/tuned"])
def test_missing_runs_counts_every_run_of_a_grid(name, tmp_path):
    """Also the candidates of methods that are tuned, which the tables show as one."""
    grid = GRIDS / f"{name}.yaml"
    planned = load_grid(grid)
    sentence, command = missing_runs(grid, tmp_path)
    assert sentence.startswith(f"None of the {len(planned)} runs of {grid.name} is done yet")
    html = figures.grid_table("x", grid, tmp_path, {"miou": ""}).data
    assert html.count(f" {len(planned)} runs ") == 1
    assert str(grid.relative_to(ROOT)) in command and (ROOT / command.split()[2]).is_file()
    assert ("--data" in command) == (grid.stem != "demo")
    fake_record(planned[-1], tmp_path)
    done = missing_runs(grid, tmp_path)[0]
    assert done.startswith(f"1 of the {len(planned)} runs of {grid.name} is done")


def test_every_grid_of_the_study_can_be_read():
    for grid in sorted(GRIDS.rglob("*.yaml")):
        assert by_benchmark(load_runs(grid, RECORDS)), grid


# -- the paper --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "number"),
    {
        "table1.ce.nyuv2.miou": 18.05,
        "table1.focal.oxford_pet.dice_error": 0.30,
        "table1.cb.cityscapes.pixel_accuracy": 81.33,
        "table1.bms.cityscapes.dice_error": 3.08,
        "table1.bms.oxford_pet.pixel_accuracy": 25.45,
        "table1.ldam.nyuv2.miou": 19.59,
        "table1.pat.nyuv2.pixel_accuracy": 55.57,
        "table2.unet.cb.nyuv2.miou": 20.18,
        "table2.attention_unet.ce.cityscapes.pixel_accuracy": 87.33,
        "table2.unetplusplus.blv.cityscapes.miou": 74.93,
        "table2.unetplusplus.pat.nyuv2.pixel_accuracy": 54.86,
        "table3.segnet.50.nyuv2.pixel_accuracy": 54.29,
        "table3.unet.5.nyuv2.miou": 18.23,
    }.items(),
)
def test_numbers_of_the_paper(address, number):
    assert paper_number(PAPER, address) == number


def test_addresses_in_words():
    address = "table2.attention_unet.cb_focal.nyuv2.miou"
    assert describe_address(address) == "mIoU of CBFocal, Attention U-Net on NYUv2"
    assert describe_address("table3.segnet.5.nyuv2.pixel_accuracy").endswith(
        "T = 5, SegNet on NYUv2"
    )


def test_tables_of_the_paper_are_whole():
    losses = "ce focal cb cb_focal bms ldam blv pat".split()
    data = ["oxford_pet", "cityscapes", "nyuv2"]
    assert list(PAPER["table1"]) == losses
    assert list(PAPER["table2"]) == ["unet", "attention_unet", "unetplusplus"]
    rows = list(PAPER["table1"].values())
    for table in PAPER["table2"].values():
        assert list(table) == [loss for loss in losses if loss != "bms"]
        rows += table.values()
    for table in PAPER["table3"].values():
        assert list(table) == [5, 10, 20, 50]
        rows += table.values()
    assert all(list(row) == data for row in rows)
    numbers = [v for row in rows for scores in row.values() for v in scores.values()]
    assert len(numbers) == 8 * 9 + 21 * 6 + 8 * 6
    # What stands in two tables is the same in both.
    for name in data:
        for metric in ("miou", "pixel_accuracy"):
            t20 = {m: PAPER["table3"][m][20][name][metric] for m in ("segnet", "unet")}
            assert t20["segnet"] == PAPER["table1"]["pat"][name][metric]
            assert t20["unet"] == PAPER["table2"]["unet"]["pat"][name][metric]


def test_what_the_paper_says_beside_its_tables():
    checked = {s["says"]: check_statement(PAPER, s) for s in PAPER["statements"]}
    for statement in PAPER["statements"]:
        if "is" in statement:  # these cells do give the printed number
            first, second = (paper_number(PAPER, address) for address in statement["is"])
            assert f"{abs(first - second):.2f}" == f"{float(statement['printed'][0]):.2f}"
    expected = {
        "2.2 % on NyU": ([1.82], False),
        "accuracy is enhanced by 2.85": ([2.07], False),
        "union is enhanced by 2.07": ([1.82], False),
        "0.39 % in detecting": ([0.54], False),
        "0.01 % to 0.04 %": ([0.07, 0.81], False),
        "by 1 % to 3 %": ([0.85, 3.14], True),
        "↑ 0.09": ([0.09], True),
        "on CityScapes decreased around 0.02": ([0.02], True),
        "on NyU decreased around 0.39": ([0.39], True),
        "and 1.7 %": ([0.69], False),
        "2.85 % increase": ([3.36], False),
        "a 2.2 % increase": ([1.42], False),
        "a 0.09 % increase": ([0.09], True),
    }
    for part, (numbers, agrees) in expected.items():
        ((ends, found),) = (value for says, value in checked.items() if part in says)
        assert ends == pytest.approx(numbers, abs=1e-9) and found == agrees, part
    assert sum(agrees for _, agrees in checked.values()) == 11


def test_statements_name_the_best_other_method_where_none_is_named():
    read = 0
    for statement in PAPER["statements"]:
        named = any(word in statement["says"] for word in ("BLV", "LDAM", "baseline"))
        if named or not statement["tables"][0][0].startswith("table1"):
            continue
        for pair in statement["tables"]:
            ((_, other, name, metric),) = (a.split(".") for a in pair if ".pat." not in a)
            others = {loss: s[name][metric] for loss, s in PAPER["table1"].items() if loss != "pat"}
            best = min if metric == "dice_error" else max
            # "increase" for a score, "decreased" for an error
            assert (pair[0].split(".")[1] == "pat") == (metric != "dice_error")
            if (name, metric) == ("oxford_pet", "dice_error"):
                continue
            assert others[other] == best(others.values()), statement["says"]
            read += 1
    assert read == 3 + 3 + 3 + 3 + 2 + 2 + 2  # abstract, Table 1, Section 5.1, conclusion


def test_statements_are_counted_by_sentence():
    """The abstract has two sentences with such numbers, Sections 5.1 and 5.2 three, the end two."""
    where = {}
    for statement in PAPER["statements"]:
        assert ("sentence" in statement) != statement["where"].startswith("Table")
        if "sentence" in statement:
            where.setdefault(statement["sentence"], set()).add(statement["where"])
    places = [place for (place,) in where.values()]  # a sentence is in one place
    assert list(where) == list(range(1, 11)) and len(PAPER["statements"]) == 20 + 3
    assert [places.count(p) for p in dict.fromkeys(places)] == [2, 3, 3, 2]


def test_gains_with_the_temperature_end_at_the_best_miou():
    for statement in PAPER["statements"]:
        for first, second in statement["tables"]:
            table, network, best, name, metric = first.split(".") if "table3" in first else [""] * 5
            if table:
                by_t = {t: values[name]["miou"] for t, values in PAPER["table3"][network].items()}
                assert int(best) == max(by_t, key=by_t.get)
                assert second == f"table3.{network}.5.{name}.{metric}"


def test_bold_numbers_that_are_not_the_best():
    wrong = {bold: best for bold, best in check_bold(PAPER)}
    address = "table2.attention_unet.{}.cityscapes.pixel_accuracy"
    assert wrong[address.format("pat")] == address.format("ce")
    assert wrong["table1.pat.oxford_pet.dice_error"] == "table1.cb.oxford_pet.dice_error"
    assert len(wrong) == 6 and "table1.pat.nyuv2.miou" not in wrong
