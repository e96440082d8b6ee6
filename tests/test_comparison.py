"""The comparison of methods: statistics, the paper's numbers, and the three chapters."""

import functools
import json
import math
import re
import statistics
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import papermill
import pytest
import torch
import yaml
from papermill.exceptions import PapermillExecutionError
from patlib.study.comparison import (
    Difference,
    Run,
    answer,
    bootstrap_differences,
    by_place,
    chance_range,
    check_bold,
    check_statement,
    choose_candidates,
    chosen_settings,
    compare,
    describe,
    glance,
    interval,
    listing,
    load_runs,
    mean_iou,
    paper_cell,
    seed_count,
    seeds_note,
    signed,
    spread,
    summarize,
    to_do,
)
from scipy import stats

from patlib.data import DATASETS, build_dataset
from patlib.metrics import SegmentationMetrics, class_groups, count_per_image
from patlib.plots.comparison import (
    columns_table,
    grid_table,
    plot_class_iou,
    plot_differences,
    plot_exponents,
    plot_predictions,
    plot_runs,
    plot_scores,
    plot_temperatures,
    plot_validation,
    small,
)
from patlib.records import RunRecord
from patlib.study.grids import load_grid, read_grid

ROOT = Path(__file__).parents[1]
GRIDS, RECORDS = ROOT / "study" / "grids", ROOT / "study" / "records" / "runs"
SMALL = GRIDS / "small"
PAPER = yaml.safe_load((ROOT / "study" / "paper.yaml").read_text())
NOTEBOOKS = ROOT / "notebooks"


def counts(found, true, predicted):
    """(1, N, 3, L) from three (N, L)."""
    return np.stack([found, true, predicted], axis=1)[None]


def random_maps(rng, images=7, classes=4, accuracy=0.6):
    truth = rng.integers(0, classes, (images, 5, 6))
    truth[0, :, 0] = 255
    guess = rng.integers(0, classes, truth.shape)
    labels = np.where(rng.random(truth.shape) < accuracy, np.where(truth == 255, 0, truth), guess)
    return torch.from_numpy(labels), torch.from_numpy(truth)


def fake_record(cell, folder, bonus=0.0, validation=None, images=20, tested="same"):
    """A record and its counts that agree with each other, but come from no training."""
    s = cell.settings
    names = build_dataset("synthetic").class_names
    if s["dataset"] != "synthetic":
        names = DATASETS[s["dataset"]].class_names
        names = [*names, "void"] if s["void"] == "class" else names
    rng = np.random.default_rng([s["seed"], *map(ord, cell.method)])
    class_counts = (1e6 * 10 ** (-2.5 * np.arange(len(names)) / len(names))).astype(int)
    true = 50 + (np.random.default_rng(0).random((images, len(names))) * class_counts / 50)
    share = np.clip(0.5 + bonus + 0.02 * rng.standard_normal(true.shape), 0, 1)
    table = counts((true * share).astype(int), true.astype(int), true.astype(int))[0]
    sums = table.sum(0)
    iou = sums[0] / (sums[1] + sums[2] - sums[0])
    scores = dict(
        miou=iou.mean(),
        pixel_accuracy=sums[0].sum() / sums[1].sum(),
        dice_error=1 - np.mean(2 * sums[0] / (sums[1] + sums[2])),
        released_miou=iou[:3].mean(),
        iou=iou.tolist(),
        **{group: iou[members].mean() for group, members in class_groups(class_counts).items()},
    )
    scores = {k: v if k == "iou" else float(v) for k, v in scores.items()}
    epochs = range(1, s["epochs"] + 1)
    miou = scores["miou"] if validation is None else validation
    record = RunRecord(
        config={**s, "device": "cpu"},
        result=dict(
            test=scores,
            validation={**scores, "miou": miou},
            curves=dict(
                epoch=list(epochs),
                train_loss=[1 / e for e in epochs],
                validation_miou=[miou * (1 - 1 / (e + 1)) for e in epochs],
                validation_pixel_accuracy=[0.5 for _ in epochs],
            ),
            class_names=list(names),
            class_counts=class_counts.tolist(),
            results_version=1,
        ),
        provenance=dict(
            device="cpu",
            seconds=dict(data=1.0, training=50.0, all=60.0),
            data=dict(test=tested),
            num_images=dict(train=9, validation=3, test=images),
        ),
    )
    record.save(folder / f"{cell.name}.json")
    shown = np.linspace(0, images - 1, 8).astype(int)
    labels = np.zeros((8, *s["image_size"]), np.uint8)
    np.savez(folder / f"{cell.name}.npz", counts=table, shown=shown, labels=labels)


def grid_file(tmp_path, methods, seeds=(0, 1, 2), **settings):
    base = dict(dataset="synthetic", image_size=[32, 40], model="attention_unet", epochs=2)
    block = dict(settings={**base, **settings}, methods=methods, seeds=list(seeds))
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"blocks": [block]}, sort_keys=False))
    return path


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
        with pytest.raises(ValueError, match=f"block={block} is not allowed with 6 test images"):
            bootstrap_interval(table, table, block=block)
    with pytest.raises(ValueError, match="resamples=0"):
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
    with pytest.raises(ValueError, match="two or more each"):
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
    assert difference.word == word and word in str(difference)
    assert difference.judged == (word in ("higher", "lower"))
    assert ("one seed" if len(by_seed) == 1 else "2 seeds") in str(difference)


def test_sentences_and_numbers_in_words():
    difference = Difference("PAT", "CE", {0: -0.021, 3: -0.019}, -0.0304, -0.0096)
    expected = "PAT is lower than CE by 2.0 points (95 % interval −3.0 to −1.0, 2 seeds)"
    assert str(difference) == expected
    assert difference.brief == "lower: −2.0 (−3.0 to −1.0)"
    close = Difference("PAT", "CE", {0: -0.005, 1: -0.007}, -0.011, -0.0003)
    assert close.brief == "lower: −0.6 (−1.1 to −0.03)"  # not 0.0, which would not leave out 0
    assert "−1.1 to −0.03, 2 seeds" in str(close)
    assert "(0.0 to 0.0)" in Difference("PAT", "CE", {0: 0.0, 1: 0.0}, 0.0, -0.00004).brief
    single = Difference("PAT", "CE", {0: 0.078}, 0.053, 0.102)
    assert single.brief == "not judged: +7.8 (images alone +5.3 to +10.2)"
    assert str(single) == (
        "PAT minus CE is +7.8 points with one seed, not judged (95 % interval over test images "
        "alone +5.3 to +10.2)"
    )
    assert [signed(v) for v in (0.0123, -0.0123, -0.0001, 0.0)] == ["+1.2", "−1.2", "0.0", "0.0"]
    assert listing(["a"]) == "a" and listing("abc") == "a, b and c"
    row = dict(n=2, planned=3, mean=0.5, std=0.01)
    assert spread(row) == "50.0\u00a0±\u00a01.0"
    assert spread({**row, "n": 1, "std": math.nan}) == "50.0"
    assert spread({**row, "n": 0}) == "not run"


def test_seeds_are_named_below_a_table():
    def rows(*numbers):
        return [dict(method=m, n=n, planned=p) for m, (n, p) in zip("ABCD", numbers, strict=False)]

    note = seeds_note({"x": rows((1, 3), (2, 5), (1, 3), (0, 3)), "y": rows((3, 3)), "z": rows()})
    assert note == "Seeds done, of those planned: x 1 of 3 (B 2 of 5); y 3 of 3; z none."


# -- runs -------------------------------------------------------------------------------------


def test_summary_of_a_grid_with_runs_missing(tmp_path):
    methods = {"CE": {"loss": "ce"}, "PAT": {"loss": "pat"}, "BMS": {"loss": "bms"}}
    grid = grid_file(tmp_path, methods)
    scores = defaultdict(list)
    for cell in load_grid(grid):
        if cell.method == "CE" or (cell.method == "PAT" and cell.settings["seed"] == 1):
            fake_record(cell, tmp_path)
            record = json.loads((tmp_path / f"{cell.name}.json").read_text())
            scores[cell.method].append(record["result"]["test"]["tail"])
    rows = {row["method"]: row for row in summarize(load_runs(grid, tmp_path), "tail")}
    assert rows["CE"]["mean"] == pytest.approx(statistics.mean(scores["CE"]))
    assert rows["CE"]["std"] == pytest.approx(statistics.stdev(scores["CE"]))
    assert list(rows["PAT"]["scores"]) == [1] and math.isnan(rows["PAT"]["std"])
    assert [rows[m]["n"] for m in methods] == [3, 1, 0]
    assert "±" in spread(rows["CE"]) and "±" not in spread(rows["PAT"])
    assert spread(rows["BMS"]) == "not run"

    runs = load_runs(grid, tmp_path)
    assert seed_count(runs, "ticks") == "1 to 3 seeds (ticks)"
    assert seed_count([r for r in runs if r.cell.method == "PAT"], "ticks") == "one seed"
    assert seed_count([r for r in runs if r.cell.method == "BMS"]) == "no seed yet"
    (row,) = describe(runs)
    assert (row["n"], row["planned"], row["seeds_done"]) == (4, 9, [0, 1, 2])
    assert describe(load_runs(grid, tmp_path, [0]))[0]["seeds_done"] == [0]
    difference = compare(runs, "PAT", "CE", resamples=50)
    assert list(difference.by_seed) == [1]  # the common seed
    assert compare(runs, "BMS", "CE") is None
    same = compare(runs, "CE", "CE", resamples=50)
    assert same.by_seed == {0: 0, 1: 0, 2: 0} and (same.low, same.high) == (0, 0)
    assert {r.cell.settings["seed"] for r in load_runs(grid, tmp_path, seeds=[2])} == {2}
    assert load_runs(grid, tmp_path / "nowhere")[0].record is None


def test_runs_that_cannot_be_compared(tmp_path):
    methods = {"CE": {"loss": "ce"}, "PAT": {"loss": "pat"}}
    grid = grid_file(tmp_path, methods, seeds=[0])
    for cell in load_grid(grid):
        fake_record(cell, tmp_path, tested=cell.method)
    runs = load_runs(grid, tmp_path)
    with pytest.raises(ValueError, match="scored on different test images"):
        compare(runs, "PAT", "CE")
    with pytest.raises(ValueError, match="metric='iou' is not allowed"):
        compare(runs, "PAT", "CE", metric="iou")
    other = Run(read_grid({"blocks": [block_of("segnet")]})[0], None, tmp_path)
    with pytest.raises(ValueError, match="several data sets or networks"):
        compare([*runs, other], "PAT", "CE")
    (tmp_path / f"{runs[0].cell.name}.npz").unlink()
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
    for cell in cells:
        if cell.method == "CE":
            fake_record(cell, tmp_path)
        elif cell.candidate < 2 or cell.settings["seed"] == 0:
            *validation, bonus = plan[cell.candidate]
            fake_record(cell, tmp_path, bonus, validation[cell.settings["seed"]])
    rows = {r["method"]: r for r in summarize(load_runs(grid, tmp_path))}
    assert rows["CE"]["n"] == 2 and rows["Focal"]["n"] == 0 and rows["Focal"]["planned"] == 2

    *validation, bonus = plan[2]
    fake_record(cells[-1], tmp_path, bonus, validation[1])
    kept = [run for run in load_runs(grid, tmp_path) if run.cell.method == "Focal"]
    assert [run.cell.candidate for run in kept] == [1, 1]
    assert [run.cell.settings["seed"] for run in kept] == [0, 1]
    assert chosen_settings(kept[0], cells) == "gamma 1.0"
    assert choose_candidates(kept) == kept


def test_glance_names_the_best_and_what_cannot_be_told_from_it(tmp_path):
    methods = {name: {"loss": loss} for name, loss in (("CE", "ce"), ("PAT", "pat"), ("CB", "cb"))}
    grid = grid_file(tmp_path, methods)
    cells = load_grid(grid)
    bonus = {"CE": 0.0, "PAT": 0.1, "CB": 0.1}
    for cell in cells:
        if cell.method != "CB":
            fake_record(cell, tmp_path, bonus[cell.method])
    assert glance(load_runs(grid, tmp_path)) == []  # a best of some is no best
    assert "no answer yet" in answer([], "miou")
    for cell in cells:
        if cell.method == "CB":  # PAT's own counts
            twin = next(c for c in cells if c.method == "PAT" and c.settings["seed"] == 0)
            for suffix in (".json", ".npz"):
                data = (tmp_path / f"{twin.name}{suffix}").read_bytes()
                (tmp_path / f"{cell.name}{suffix}").write_bytes(data)
    (row,) = glance(load_runs(grid, tmp_path), resamples=200)
    assert row["miou"]["equals"] == ["PAT", "CB"] and row["seeds"] == 3
    assert row["miou"]["pat"].word == "higher"
    assert "PAT and CB are the best, or not shown to be worse" in answer([row], "miou")
    other = {**row, "miou": {**row["miou"], "best": "CE", "equals": ["CE"]}}
    assert "no loss is the best" in answer([row, other], "miou")


def test_every_grid_of_the_study_can_be_read():
    for grid in sorted(GRIDS.rglob("*.yaml")):
        assert by_place(load_runs(grid, RECORDS)), grid


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
    assert paper_cell(PAPER, address) == number


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
            first, second = (paper_cell(PAPER, cell) for cell in statement["is"])
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
        "and 1.7 %": ([0.74], False),
        "a 0.09 % increase": ([0.55], False),
    }
    for part, (numbers, agrees) in expected.items():
        ((ends, found),) = (value for says, value in checked.items() if part in says)
        assert ends == pytest.approx(numbers, abs=1e-9) and found == agrees, part


def test_statements_name_the_best_other_method_where_none_is_named():
    for statement in PAPER["statements"]:
        named = any(word in statement["says"] for word in ("BLV", "LDAM", "baseline", "T", "Dice"))
        first, second = (pair.split(".") for pair in statement["tables"][0])
        if named or first[0] != "table1":
            continue
        *_, name, metric = second
        others = {loss: s[name][metric] for loss, s in PAPER["table1"].items() if loss != "pat"}
        assert second[1] == max(others, key=others.get), statement["says"]


def test_bold_numbers_that_are_not_the_best():
    wrong = {bold: best for bold, best in check_bold(PAPER)}
    cell = "table2.attention_unet.{}.cityscapes.pixel_accuracy"
    assert wrong[cell.format("pat")] == cell.format("ce")
    assert wrong["table1.pat.oxford_pet.dice_error"] == "table1.cb.oxford_pet.dice_error"
    assert len(wrong) == 6 and "table1.pat.nyuv2.miou" not in wrong


# -- records and stored pages -----------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_scores_of_a_record_are_those_of_its_counts(path):
    record = json.loads(path.read_text())
    test, class_counts = record["result"]["test"], record["result"]["class_counts"]
    with np.load(path.with_suffix(".npz")) as file:
        table, shown, labels = (file[name] for name in ("counts", "shown", "labels"))
    assert len(table) == record["provenance"]["num_images"]["test"]
    found, true, predicted = table.sum(0, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        iou = found / (true + predicted - found)
    assert np.nanmean(iou) == pytest.approx(test["miou"], abs=1e-9)
    assert found.sum() / true.sum() == pytest.approx(test["pixel_accuracy"], abs=1e-9)
    for group, classes in class_groups(class_counts).items():
        assert np.nanmean(iou[classes]) == pytest.approx(test[group], abs=1e-9)
    assert labels.shape == (len(shown), *record["config"]["image_size"])
    assert labels.max() < len(class_counts)


class Tables(HTMLParser):
    """name -> rows of texts, of the tables in stored outputs."""

    def __init__(self):
        super().__init__()
        self.tables, self.name, self.in_cell = {}, None, False

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.name = dict(attrs).get("data-name")
            self.tables[self.name] = []
        elif tag == "tr":
            self.tables[self.name].append([])
        elif tag in ("td", "th"):
            self.in_cell = True
            self.tables[self.name][-1].append("")

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.tables[self.name][-1][-1] += data


def stored_tables(notebook):
    parser = Tables()
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            parser.feed("".join(output.get("data", {}).get("text/html", "")))
    return {
        name: {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
        for name, (head, *rows) in parser.tables.items()
    }


@functools.cache
def small_grid(name):
    return load_grid(SMALL / f"{name}.yaml")


def recorded_text(grid, metric, method, dataset, model, seeds=None):
    """What a table must show, from the JSON files alone."""
    cells = [
        c
        for c in small_grid(grid)
        if (c.method, c.settings["dataset"], c.settings["model"]) == (method, dataset, model)
        and (seeds is None or c.settings["seed"] in seeds)
    ]
    paths = [RECORDS / f"{cell.name}.json" for cell in cells]
    records = [json.loads(path.read_text()) for path in paths if path.is_file()]
    for record in records:  # filed under the settings that it was run with
        assert any(record["config"].items() >= cell.settings.items() for cell in cells)
    if not records:
        return "not run"
    scores = [100 * record["result"]["test"][metric] for record in records]
    if len(scores) == 1:
        return f"{scores[0]:.1f}"
    return f"{statistics.mean(scores):.1f}\u00a0±\u00a0{statistics.stdev(scores):.1f}"


def methods_with_records(grid, dataset, model="segnet"):
    """The rows that a table must have; those without a run are left out."""
    return {
        c.method
        for c in small_grid(grid)
        if (c.settings["dataset"], c.settings["model"]) == (dataset, model)
        and (RECORDS / f"{c.name}.json").is_file()
    }


LABELS = {"Oxford-IIIT Pet": "oxford_pet", "NYUv2": "nyuv2", "CamVid": "camvid"}
NETWORKS = {
    "SegNet": "segnet",
    "U-Net": "unet",
    "Attention U-Net": "attention_unet",
    "U-Net++": "unetplusplus",
}
TITLES = {"mIoU": "miou", "released measure": "released_miou", "pixel accuracy": "pixel_accuracy"}


def test_stored_numbers_of_the_baselines_are_those_of_the_records():
    tables = stored_tables(NOTEBOOKS / "baselines.ipynb")
    checked = 0
    for metric in ("miou", "pixel_accuracy", "dice_error"):
        for method, row in tables[f"baselines-table1-{metric}"].items():
            for column, text in row.items():
                label, _, whose = column.rpartition(", ")
                if whose == "ours":
                    expected = recorded_text("table1", metric, method, LABELS[label], "segnet")
                    assert text == expected, (metric, method, column)
                    checked += 1
    for method, row in tables["baselines-released"].items():
        for column, text in row.items():
            label, _, title = column.removesuffix(" (%)").rpartition(", ")
            expected = recorded_text("table1", TITLES[title], method, LABELS[label], "segnet")
            assert text == expected, (method, column)
            checked += 1
    for key, row in tables["baselines-groups"].items():
        label, method = key.split(", ")
        for column, text in row.items():
            group = column.removesuffix(" (%)")
            assert text == recorded_text("table1", group, method, LABELS[label], "segnet"), key
            checked += 1
    assert checked == 8 * 3 * (3 + 3 + 2)
    tail = tables["baselines-tail-classes"]
    assert len(tail) == 3 + 4 + 1
    for key, row in tail.items():
        label, name = key.rpartition(" (")[0].split(", ")
        for method, text in row.items():
            scores = []
            for cell in small_grid("table1"):
                if (cell.method, cell.settings["dataset"]) == (method, LABELS[label]):
                    result = json.loads((RECORDS / f"{cell.name}.json").read_text())["result"]
                    scores.append(100 * result["test"]["iou"][result["class_names"].index(name)])
            assert text == f"{statistics.mean(scores):.1f}", (key, method)
        assert len(row) == 8


def test_stored_numbers_of_the_architectures_are_those_of_the_records():
    tables = stored_tables(NOTEBOOKS / "architectures.ipynb")
    checked = 0
    ran = {
        (label, method)
        for label, model in NETWORKS.items()
        for method in methods_with_records(
            "table1" if model == "segnet" else "table2", "camvid", model
        )
        if method in {c.method for c in small_grid("table2")}
    }
    for metric in ("miou", "pixel_accuracy"):
        for label, model in NETWORKS.items():
            for method, row in tables[f"architectures-table2-{metric}-{model}"].items():
                text = row.get("CamVid, ours", "")
                assert (text not in ("", "not run")) == ((label, method) in ran)
                if text:
                    grid = "table1" if model == "segnet" else "table2"
                    assert text == recorded_text(grid, metric, method, "camvid", model)
                    checked += 1
    groups = tables["architectures-groups"]
    assert {tuple(key.split(", ")) for key in groups} == ran
    for key, row in groups.items():
        label, method = key.split(", ")
        grid = "table1" if label == "SegNet" else "table2"
        for column, text in row.items():
            group = column.removesuffix(" (%)")
            assert text == recorded_text(grid, group, method, "camvid", NETWORKS[label])
            checked += 1
    assert checked >= 5 * len(ran) > 0


def test_stored_numbers_of_the_temperatures_are_those_of_the_records():
    tables = stored_tables(NOTEBOOKS / "temperature.ipynb")
    checked = 0
    for metric in ("miou", "pixel_accuracy"):
        for key, row in tables[f"temperature-table3-{metric}"].items():
            if key.endswith("ours"):
                name = LABELS[key.split(", ")[1]]
                for method, text in row.items():
                    assert text == recorded_text("table3", metric, method, name, "segnet"), key
                    checked += 1
    assert checked == 2 * 4 * 2
    parts = methods_with_records("components", "camvid")
    assert {"CE", "PAT"} | parts == set(tables["temperature-components"])
    assert methods_with_records("longer", "camvid") == set(tables.get("temperature-longer", {}))
    for name, grids in {"components": ("components", "table1"), "longer": ("longer",)}.items():
        for method, row in tables.get(f"temperature-{name}", {}).items():
            known = {c.method for c in small_grid(grids[0])}
            seeds = {c.settings["seed"] for c in small_grid(grids[0])}  # CE has more in Table 1
            grid = grids[0] if method in known else grids[1]
            assert len(row) == 5
            for column, text in row.items():
                title = column.removesuffix(" (%)")
                metric = TITLES.get(title, title)
                expected = recorded_text(grid, metric, method, "camvid", "segnet", seeds)
                assert text == expected, method


@pytest.mark.parametrize("name", ["baselines", "architectures", "temperature"])
def test_stored_numbers_of_the_paper_are_those_of_its_file(name):
    """Also: nothing is stored that was made with real images."""
    numbers = 0
    for table, rows in stored_tables(NOTEBOOKS / f"{name}.ipynb").items():
        if not re.search(r"-table\d", table):
            continue
        for first, row in rows.items():
            for second, text in row.items():
                # In Table 3 the rows are the networks and data sets, elsewhere the columns.
                method, place = (second, first) if "table3" in table else (first, second)
                if place.endswith("paper") and text:
                    *network, label, _ = place.split(", ")
                    assert float(text) in paper_numbers(table, method, label, network), place
                    numbers += 1
    assert numbers >= 40
    content = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    cell = next(c for c in content["cells"] if "parameters" in c["metadata"].get("tags", []))
    assert "data: str = None" in "".join(cell["source"])


def paper_numbers(table, method, label, network):
    metric = re.search(r"table\d-(miou|pixel_accuracy|dice_error)", table)[1]
    dataset = {**LABELS, "Cityscapes": "cityscapes"}[label]
    loss = method.lower().replace("cbfocal", "cb_focal")
    if "table3" in table:
        node = PAPER["table3"][NETWORKS[network[0]]][int(method.removeprefix("T = "))]
    elif not network or network[0] == "SegNet":
        node = PAPER["table1"][loss]
    else:
        node = PAPER["table2"][NETWORKS[network[0]]][loss]
    return [node[dataset][metric]]


# -- figures ----------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path):
    methods = {"CE": {"loss": "ce"}, "PAT": {"loss": "pat"}, "CB": {"loss": "cb"}}
    grid = grid_file(tmp_path, methods, seeds=[0, 1])
    for cell in load_grid(grid):
        if cell.method != "CB":
            fake_record(cell, tmp_path, 0.1 * (cell.method == "PAT"))
    return load_runs(grid, tmp_path)


def test_figures_show_every_seed_and_leave_out_what_was_not_run(toy):
    import matplotlib.pyplot as plt

    (methods,) = by_place(toy).values()
    axis = plot_scores({"toy": summarize(toy)}).axes[0]
    drawn = [len(c.get_offsets()) for c in axis.collections]
    assert drawn == [2, 1, 2, 1]  # seeds and mean, of CE and PAT; CB was not run
    heat = plot_class_iou(methods).axes[0]
    record = methods["CE"][0].record
    order = [c for group in class_groups(record.result["class_counts"]).values() for c in group]
    names = [record.result["class_names"][c] for c in order]
    assert [t.get_text().split("\n")[0] for t in heat.get_xticklabels()] == names
    assert [t.get_text() for t in heat.get_yticklabels()] == ["CE", "PAT"]
    mean = np.mean([run.score("iou") for run in methods["PAT"]], axis=0)[order]
    np.testing.assert_allclose(heat.images[0].get_array()[1], 100 * mean)
    curves = plot_validation({"toy": methods}).axes[0]
    assert len(curves.lines) == 2

    difference = compare(toy, "PAT", "CE", resamples=50)
    flat = Difference("CB", "CE", {0: 0.01, 1: -0.01}, -0.02, 0.02)
    axis = plot_differences({"toy": {"all": [difference, flat]}, "none": {"all": []}}).axes[0]
    marks = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in marks] == [False, True]
    plt.close("all")


def test_there_is_no_figure_of_nothing(toy, capsys):
    import matplotlib.pyplot as plt

    nothing = {"CB": [run for run in toy if run.cell.method == "CB"]}
    figures = [plot_class_iou(nothing), plot_validation({"toy": nothing}), plot_runs(nothing)]
    figures += [plot_scores({"toy": summarize(nothing["CB"])})]
    figures += [plot_differences({"toy": {"all": []}}), plot_temperatures({"toy": {}})]
    figures += [plot_temperatures({"toy": {20.0: {"mIoU": [30.0, 31.0]}}})]
    figures += [plot_exponents({"x": {0.5: {"miou": [1.0]}}}, {}, {"miou": "mIoU"})]
    assert figures == [None] * len(figures) and not plt.get_fignums()
    assert small(None, ("None of 3 runs is done", "python here")) is None
    assert capsys.readouterr().out == "None of 3 runs is done:\n\npython here\n"


def test_panels_and_legends_hold_what_was_run(toy):
    import matplotlib.pyplot as plt

    rows = {"toy": summarize(toy), "none": summarize(r for r in toy if r.cell.method == "CB")}
    assert [axis.get_title() for axis in plot_scores(rows).axes] == ["toy"]
    far = [dict(row, scores={0: 0.1, 1: 0.9}) for row in rows["toy"]]
    panels = plot_scores({"toy": rows["toy"], "far": far}).axes
    spans = [np.ptp(axis.get_xlim()) for axis in panels]  # a point is as wide in each
    assert spans[0] == pytest.approx(spans[1]) and spans[1] > 80
    for axis in panels:
        low, high = axis.get_xlim()
        drawn = np.concatenate([c.get_offsets()[:, 0] for c in axis.collections])
        assert low < drawn.min() and drawn.max() < high
    temperatures = {t: {"mIoU": [30.0 + t]} for t in (5.0, 20.0)}
    figure = plot_temperatures({"two": temperatures, "one": {5.0: {"mIoU": [30.0]}}})
    assert [axis.get_title() for axis in figure.axes] == ["two"]
    points = {a: {"miou": [30.0, 31.0]} for a in (0.0, 0.5)}
    series = {"images": {}, "weights": points}
    figure = plot_exponents(series, {"CE": {"miou": 29.0}}, {"miou": "mIoU"})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["weights", "CE"]
    plt.close("all")


def test_pictures_of_predictions(toy):
    import matplotlib.pyplot as plt

    (methods,) = by_place(toy).values()
    figure = plot_runs(methods, columns=range(3))
    assert len(figure.axes) == 2 * 3
    counts = methods["PAT"][0].images()["counts"]
    found, true, _ = counts[0]
    note = f"{100 * found.sum() / true.sum():.0f} / {100 * mean_iou(counts[0]):.0f}"
    assert figure.axes[3].get_xlabel() == note

    truth = np.array([[0, 1], [255, 1]])
    labels = np.array([[0, 0], [0, 1]])
    image = np.zeros((2, 2, 3))
    figure = plot_predictions([image], [truth], {"CE": [labels]}, ["a", "b"])
    wrong = figure.axes[3].images[0].get_array()
    dark = wrong.sum(-1) < 200
    assert dark.tolist() == [[False, True], [False, False]]
    assert (wrong[1, 0] == 255).all()  # ignored
    assert figure.axes[3].get_xlabel() == "67 % correct"
    picture = small(figure)
    assert picture.data[:4] == b"\x89PNG" and not plt.fignum_exists(figure.number)
    plt.close("all")


def test_tables_of_cells_that_were_not_run(tmp_path):
    path = GRIDS / "paper" / "table1-cityscapes.yaml"
    table = grid_table("x", path, tmp_path, {"miou": "mIoU (%)"})
    assert "may not be redistributed" in table and "<table" not in table
    assert "python study/run.py study/grids/paper/table1-cityscapes.yaml --data FOLDER" in table
    cells = load_grid(path)
    fake_record(cells[0], tmp_path)
    table = grid_table("x", path, tmp_path, {"miou": "mIoU (%)", "tail": "tail (%)"})
    # The one method with a run, in the one place where it has it.
    assert "redistributed" not in table and table.count("<tr>") == 2 and table.count("<td>") == 3
    assert "1 of 3." in table
    assert columns_table("t", {"a": {"CE": "1"}, "b": {"PAT": "2"}}).count("<td></td>") == 2
    left = columns_table("t", {"a": {"CE": "1", "PAT": "not run"}, "b": {"CE": "not run"}})
    assert "PAT" not in left and "<th>b" not in left
    assert columns_table("t", {"a": {"CE": "not run"}}) == ""


@pytest.mark.parametrize("name", ["demo", "small/table3", "small/tuned"])
def test_what_is_to_do_counts_every_run_of_a_grid(name, tmp_path):
    """Also the candidates of methods that are tuned, which the tables show as one."""
    grid = GRIDS / f"{name}.yaml"
    cells = load_grid(grid)
    sentence, command = to_do(grid, tmp_path)
    assert sentence.startswith(f"None of the {len(cells)} runs of {grid.name} is done yet")
    assert grid_table("x", grid, tmp_path, {"miou": ""}).count(f" {len(cells)} runs ") == 1
    assert str(grid.relative_to(ROOT)) in command and (ROOT / command.split()[2]).is_file()
    assert ("--data" in command) == (grid.stem != "demo")
    fake_record(cells[-1], tmp_path)
    assert to_do(grid, tmp_path)[0].startswith(f"1 of the {len(cells)} runs of {grid.name} is done")


# -- the chapters -----------------------------------------------------------------------------


def execute(name, tmp_path, **parameters):
    output = tmp_path / f"{name}.ipynb"
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb",
        output,
        parameters=parameters,
        cwd=tmp_path,
        progress_bar=False,
    )
    return output


PLANNED = {
    "baselines": ["table1"],
    "architectures": ["table1", "table2"],
    "temperature": ["table1", "table3", "components", "longer"],
}


@pytest.mark.parametrize("name", PLANNED)
def test_chapter_with_other_parameters(name, tmp_path):
    records = tmp_path / "records"
    records.mkdir()
    bonus = {"PAT": 0.1, "T = 20": 0.1, "BLV": -0.1}  # of seed 1, the only one that was run
    for grid in PLANNED[name]:
        for cell in load_grid(SMALL / f"{grid}.yaml"):
            if cell.settings["seed"] == 1 and cell.method != "BMS":
                fake_record(cell, records, bonus.get(cell.method, 0.0))
    more = {"temperatures": [1.0, 50.0]} if name == "temperature" else {}
    output = execute(
        name, tmp_path, records=str(records), seeds=[0, 1], resamples=50, block=2, epochs=1, **more
    )
    tables = stored_tables(output)
    check_texts(output)
    if name == "baselines":
        assert "CamVid 1 of 2;" in output.read_text()
        assert "BMS" not in tables["baselines-released"]
        assert tables["baselines-table1-miou"]["BMS"]["CamVid, ours"] == "not run"
        assert tables["baselines-glance"]["CamVid"]["seeds"] == "not every loss has run"  # BMS
        sentences = output.read_text()
        assert "PAT minus CE is +" in sentences and "BLV minus CE is −" in sentences
        assert "is higher than CE" not in sentences  # one seed is not judged
    elif name == "architectures":
        text = tables["architectures-gains"]["SegNet"]["CamVid, ours: all classes"]
        assert text.startswith("not judged: +")
        assert "With SegNet there is one seed" in output.read_text()
        assert tables["architectures-gains"]["U-Net"]["ours: tail"] == "not run"  # seed 0 alone
    else:
        ours = tables["temperature-table3-miou"]["SegNet, CamVid, ours"]
        assert float(ours["T = 20"]) > float(ours["T = 5"])
        assert "T = 50" in tables["temperature-miniature"]
        row = tables["temperature-range"]["CamVid"]
        assert float(row["range, ours"]) > 0 and row["scatter, ours"] == "–"
        assert set(tables["temperature-sentences"]) >= {"CamVid, T = 5", "NYUv2, T = 50"}
        assert "two programs for one loss" in output.read_text()


@pytest.mark.parametrize("name", PLANNED)
def test_chapter_with_next_to_no_records(name, tmp_path):
    """One loss of one table: no statement about others, no figure without data, the commands."""
    records = tmp_path / "records"
    records.mkdir()
    for cell in load_grid(SMALL / "table1.yaml"):
        if (cell.method, cell.settings["seed"]) == ("PAT", 0):
            fake_record(cell, records)
    more = {"temperatures": [20.0]} if name == "temperature" else {}
    output = execute(name, tmp_path, records=str(records), resamples=50, epochs=1, **more)
    check_texts(output)
    text = output.read_text()
    for grid in PLANNED[name][1:] or ["table1"]:
        assert f"python study/run.py study/grids/small/{grid}.yaml" in text
    assert "two programs" not in "".join(p for p in glued(output) if isinstance(p, str))
    assert not set(stored_tables(output)) & {
        "baselines-pat",
        "baselines-tuned",
        "temperature-sentences",
        "temperature-parts",
        "temperature-longer",
    }


def glued(notebook):
    """The texts that a notebook puts into its prose and captions."""
    key = "application/papermill.record/text/plain"
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            if key in output.get("data", {}):
                yield "".join(output["data"][key])


def check_texts(notebook):
    """A cell of a table may be "not run"; a sentence that has this in it says nothing."""
    texts = list(glued(notebook))
    for rows in stored_tables(notebook).values():
        texts += [cell for row in rows.values() for cell in row.values() if cell != "not run"]
    assert texts and not [t for t in texts if "not run" in t or re.search(r"\bnan\b", t)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"resample": 5}, "the notebook has no parameter 'resample' (did you mean 'resamples'"),
        ({"records": "/no/such/folder"}, "records='/no/such/folder' is not allowed"),
    ],
)
def test_chapter_stops_at_wrong_parameters(tmp_path, parameters, message):
    with pytest.raises(PapermillExecutionError, match=re.escape(message)):
        execute("temperature", tmp_path, **parameters)
