"""What the pages say on learning rates follows from the trials and the runs at the chosen rates."""

import numpy as np
import pandas as pd
import pytest
from chapters import ROOT
from fake_runs import fake_record, grid_file
from figures import load_paper, rates, what_holds
from figures.judging import Judged

from patlib.study.grids import load_grid
from patlib.study.runs import load_runs

METHODS = {"CE": {"loss": "ce"}, "PAT": {"loss": "pat"}, "CB": {"loss": "cb"}}


@pytest.fixture
def runs_at(tmp_path):
    """A function: runs at a rate, in which methods are better than CE by a bonus."""

    def make(rate, bonus, methods=METHODS, seeds=(0, 1, 2)):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        grid = grid_file(folder, methods, seeds=seeds, learning_rate=rate)
        for planned in load_grid(grid):
            if planned.method in bonus:
                fake_record(planned, folder, bonus[planned.method], images=40)
        return load_runs(grid, folder)

    return make


def trials_of(chosen):
    index = pd.MultiIndex.from_product([["synthetic"], [*chosen]])
    return pd.DataFrame({"chosen": [*chosen.values()]}, index=index)


def test_words_on_the_rates_follow_the_trials():
    index = pd.MultiIndex.from_product([["camvid"], ["CE", "PAT", "LDAM"]])
    scores = [[0.30, 0.40, 0.35], [0.28, 0.36, 0.44], [0.1, np.nan, 0.2]]
    trials = pd.DataFrame(scores, index=index, columns=[0.0003, 0.001, 0.003])
    trials["chosen"] = [0.001, 0.003, np.nan]
    said = rates.trial_words(trials)
    assert said.endswith("own best rate: PAT −4.0 and +4.0 on CamVid.")
    assert rates.trial_rows(trials) == [
        ["CamVid, CE", "30.0", "<b>40.0</b>", "35.0"],
        ["CamVid, PAT", "28.0", "36.0", "<b>44.0</b>"],
        ["CamVid, LDAM", "10.0", "", "20.0"],
    ]
    trials.iloc[:, :3] = np.nan
    assert rates.trial_rows(trials) == [] and "still to come" in rates.trial_words(trials)


def test_each_loss_is_judged_at_the_rate_that_its_trials_chose(runs_at):
    panels = {"drawn": runs_at(0.001, {"CE": 0.0, "PAT": -0.1, "CB": 0.05})}
    two = {name: METHODS[name] for name in ("CE", "PAT")}
    others = runs_at(0.003, {"CE": -0.3, "PAT": 0.2}, two, seeds=(0, 2))
    trials = trials_of({"CE": 0.001, "PAT": 0.003})
    moved = rates.at_chosen_rates(panels, others, trials)
    taken = {(r.method, r.seed, r.planned.settings["learning_rate"]) for r in moved["drawn"]}
    assert taken == {
        *((method, seed, 0.001) for method in ("CE", "CB") for seed in (0, 1, 2)),
        *(("PAT", seed, 0.003) for seed in (0, 2)),
    }
    same = rates.of_same_seeds(panels, moved)
    assert {(r.method, r.seed, r.planned.settings["learning_rate"]) for r in same["drawn"]} == {
        *((method, seed, 0.001) for method in ("CE", "CB") for seed in (0, 1, 2)),
        *(("PAT", seed, 0.001) for seed in (0, 2)),
    }
    judged, chosen = (
        {title: Judged(runs, resamples=100) for title, runs in of.items()} for of in (same, moved)
    )
    said = rates.chosen_words(judged, chosen)
    names = ("mIoU", "IoU of the tail", "IoU of the head", "pixel accuracy")
    changes = "; ".join(f"{name} on drawn, lower → higher" for name in names)
    assert said.endswith(f"that change with the rate: {changes}.")
    rows = rates.rate_contrasts(judged, chosen, ["CE", "PAT"])
    assert [row[0] for row in rows] == [f"drawn, PAT, {name}" for name in names]
    assert all(row[1].startswith("lower: −") and row[2].startswith("higher: +") for row in rows)
    assert rates.chosen_words(judged, judged).endswith("No verdict changes with the rate.")

    header, rows = rates.rate_scores(panels, others, trials)
    assert len(header) == 5 and [row[0] for row in rows] == ["embedded, CE", "embedded, PAT"]
    pat = {
        rate: np.mean([r.score("miou") for r in of if r.method == "PAT" and r.seed != 1])
        for rate, of in ((0.001, panels["drawn"]), (0.003, others))
    }
    change = 100 * (pat[0.003] - pat[0.001])
    assert rates.effect_words(panels, others, trials).endswith(
        f"in points: on embedded, that of PAT by +{change:.1f}."
    )
    assert rates.effect_words(panels, [], trials) == ""
    assert rows[1][1:3] == [f"{100 * pat[0.001]:.1f}", f"<b>{100 * pat[0.003]:.1f}</b>"]


def test_nothing_is_judged_before_trials_and_runs_are_there(runs_at):
    panels = {"drawn": runs_at(0.001, {"CE": 0.0, "PAT": 0.1, "CB": 0.0})}
    others = runs_at(0.003, {"CE": 0.0}, seeds=(0, 2))  # PAT is still to run
    open_trials = trials_of({"CE": 0.001, "PAT": np.nan})
    assert rates.at_chosen_rates(panels, others, open_trials) == {}
    assert rates.at_chosen_rates(panels, others, trials_of({"CE": 0.001, "PAT": 0.003})) == {}
    assert "still to come" in rates.chosen_words({}, {}) and rates.rate_contrasts({}, {}, []) == []
    assert rates.at_chosen_rates(panels, [], trials_of({"CE": 0.001, "PAT": 0.001})) == {}


def test_the_ledger_says_whether_a_rate_decides(runs_at):
    def evidence(*changes):  # of PAT, in the order of the benchmarks
        panels = {
            f"data {number}": runs_at(0.001, {"CE": 0.0, "PAT": change})
            for number, change in enumerate(changes)
        }
        judged = {title: Judged(runs, resamples=100) for title, runs in panels.items()}
        return what_holds.Evidence(panels, judged, {}, load_paper())

    worse = evidence(-0.1, -0.1, 0.1)
    said = what_holds.rate_words((worse, evidence(-0.1, 0.1, 0.1)))
    assert "no claim about PAT beside cross-entropy has another verdict (other counts" in said
    assert "best mIoU" not in said and "rare classes, 1 of 3 → 2 of 3" in said
    said = what_holds.rate_words((worse, evidence(-0.1, 0.1, 0.1)), counts=False)
    assert said.endswith("another verdict; on single benchmarks some differ.")
    said = what_holds.rate_words((worse, evidence(0.1, 0.1, 0.1)))
    assert "rare classes, holds in part (1 of 3) → holds (3 of 3)" in said and "counts" not in said
    assert what_holds.rate_words((worse, worse)).endswith("has another verdict.")
    assert "still to come" in what_holds.rate_words(None)


def test_runs_at_another_rate_differ_from_those_of_the_study_in_the_rate_alone():
    study, again = (
        load_grid(ROOT / "study" / "grids" / "small" / f"{name}.yaml")
        for name in ("segnet", "rate003")
    )
    of_study = [(run.method, run.settings) for run in study]
    assert {run.settings["learning_rate"] for run in again} == {0.003}
    for run in again:
        assert (run.method, {**run.settings, "learning_rate": 0.001}) in of_study
