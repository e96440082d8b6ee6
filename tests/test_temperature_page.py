"""Which part of PAT works?: ranges over T, and words on the parts, follow the records."""

import dataclasses
import math

import numpy as np
import pytest
from chapters import Chapter
from fake_runs import fake_record, grid_file
from figures import GRIDS
from figures import temperature as chapter
from figures.judging import Judged

from patlib.study.grids import load_grid
from patlib.study.runs import load_runs

PARTS = {
    "CE": {"loss": "ce"},
    "β only": {"loss": "pat", "loss_params": {"size_exponent": 0.0}},
    "PAT": {"loss": "pat"},
}


@pytest.fixture
def study(tmp_path):
    """A function: runs of methods that are better than 0.5 by a bonus."""

    def make(methods, bonus, seeds=(0, 1, 2)):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        grid = grid_file(folder, methods, seeds=seeds)
        for planned in load_grid(grid):
            if planned.method in bonus:
                fake_record(planned, folder, bonus[planned.method])
        return load_runs(grid, folder)

    return make


def test_the_range_is_that_of_the_seeds_that_every_method_has(study):
    methods = {f"T = {t}": {"loss": "pat", "loss_params": {"temperature": t}} for t in (5.0, 50.0)}
    runs = study(methods, dict.fromkeys(methods, 0.0))
    scores = {"T = 5.0": [0.30, 0.32, 0.37], "T = 50.0": [0.33, 0.34, 0.35]}
    for run in runs:
        run.record.result["test"]["miou"] = scores[run.method][run.seed]
    table = np.array(list(scores.values()))
    seeds, span, std, chance = chapter.score_range(runs)
    assert seeds == 3 and span == pytest.approx(abs(np.diff(table.mean(1))[0]))
    residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    assert std == pytest.approx(math.sqrt((residuals**2).sum() / 2))
    # The range of two normal means is |N(0, 2 s²/3)|, of mean 2 s / sqrt(3 π).
    assert chance == pytest.approx(2 * std / math.sqrt(3 * math.pi), rel=1e-3)
    said = chapter.range_words(runs, "here")
    assert said == f"1.0 points here, with 3 seeds (by chance alone about {100 * chance:.1f})"

    def without(*left_out):
        return [
            dataclasses.replace(run, record=None) if (run.method, run.seed) in left_out else run
            for run in runs
        ]

    two = without(("T = 5.0", 2))
    assert chapter.score_range(two)[:2] == (2, pytest.approx(np.ptp(table[:, :2].mean(1))))
    one = without(("T = 5.0", 2), ("T = 50.0", 0))
    assert chapter.range_words(one, "here") == "2.0 points here, with one seed"
    none = without(*(("T = 5.0", seed) for seed in range(3)))
    assert chapter.score_range(none)[0] == 0  # that of one T is no range
    assert chapter.range_words(none, "here").startswith("no range here")


def test_runs_that_find_no_rare_class_are_said_to_tell_nothing(study):
    found = Judged(study(PARTS, {"CE": -0.5, "β only": -0.5, "PAT": 0.1}), resamples=50)
    said = chapter.parts_words(found, "X")
    assert said.startswith("Beside cross-entropy on X, in points: β alone changes mIoU by ")
    assert "; with cross-entropy and with β alone the tail is below 1 %, so that" in said
    sound = Judged(study(PARTS, {"CE": 0.0, "β only": 0.0, "PAT": 0.1}), resamples=50)
    assert "below 1 %" not in chapter.parts_words(sound, "X")
    alone = Judged(study(PARTS, {"CE": 0.0}), resamples=50)
    assert chapter.parts_words(alone, "X") == "The runs that tell are still to come."


def test_long_runs_answer_first(tmp_path):
    bonus = {"CE": 0.0, "β only": 0.0, "1/S, images": 0.1, "PAT": 0.1}
    for planned in load_grid(GRIDS / "small" / "attribution.yaml"):
        if planned.method in bonus and planned.settings["seed"] in (0, 2):
            fake_record(planned, tmp_path, bonus[planned.method])
    for planned in load_grid(GRIDS / "small" / "temperature.yaml"):
        fake_record(planned, tmp_path, 0.1)
    page = Chapter(
        "temperature", records=str(tmp_path), only=["temperature-04", "temperature-long-t"]
    )
    said = page.glued["temperature-answer"]
    assert said.startswith("In runs of 100 epochs: Beside cross-entropy on CamVid with SegNet, in ")
    assert "the division by the size alone changes mIoU by +" in said
    assert "; both change mIoU by +" in said and "on NYUv2 with SegNet" in said
    assert "Over T from 5 to 50, mIoU ranges over " in said and "on CamVid, with 3 seeds" in said
    assert set(page.tables["temperature-long-t"]) == {"T = 5", "T = 10", "T = 20", "T = 50"}


def test_other_seeds_than_on_the_page_of_the_baselines_are_said(tmp_path):
    grid = grid_file(tmp_path, {"PAT": {"loss": "pat"}}, seeds=[0, 1, 2], epochs=5)
    for planned in load_grid(grid):
        fake_record(planned, tmp_path, 0.1)
    runs = load_runs(grid, tmp_path)
    said = chapter.seeds_words(runs[1:], runs[:2])
    assert said.startswith("The seeds here are 1 and 2; on that page PAT has 0 and 1, so")
    assert chapter.seeds_words(runs, runs) == chapter.seeds_words([], runs) == ""
