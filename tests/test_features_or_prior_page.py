"""The chapter on features and prior: its words and tables follow from the counts of the records."""

import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from chapters import Chapter
from fake_runs import fake_record
from figures import features_or_prior as chapter
from figures.features_or_prior import (
    answer,
    answers,
    at_pixel_prior,
    class_changes,
    prior_words,
    summary,
)
from scipy import stats

from patlib.priors import KINDS, STRENGTHS
from patlib.records import RunRecord
from patlib.study.grids import load_grid
from patlib.study.runs import load_runs

CLASSES, IMAGES = 8, 20


def file_run(planned, folder, tail, best):
    """A record whose mIoU is highest at τ (or κ) = ``best``, and whose tail grows with τ."""
    fake_record(planned, folder)
    path = folder / f"{planned.name}.json"
    record = RunRecord.load(path)
    record.result["class_images"] = [IMAGES] * CLASSES
    record.save(path)
    noise = np.random.default_rng(planned.settings["seed"]).normal(0, 0.002)  # of the seed
    true = np.full((IMAGES, CLASSES), 1000)
    group = np.arange(CLASSES) >= CLASSES - 2

    def hits(strength):
        share = np.where(group, tail + 0.05 * strength, 0.8 - 0.2 * abs(strength - best))
        return (true * np.clip(share + noise, 0, 1)).astype(int)

    shifts = [(kind, s) for kind in KINDS for s in STRENGTHS[kind]]
    tp = np.stack([hits(strength) for _, strength in shifts])
    unshifted = shifts.index(("tau", 0.0))
    arrays = {"shift_kinds": [k for k, _ in shifts], "shift_strengths": [s for _, s in shifts]}
    for prefix in ("", "validation_"):
        arrays[f"{prefix}counts"] = np.stack([tp[unshifted], true, true], 1)
        arrays[f"{prefix}shifted_tp"] = tp
        arrays[f"{prefix}shifted_predicted"] = np.broadcast_to(true, tp.shape)
    np.savez(folder / f"{planned.name}.npz", **arrays)


@pytest.fixture
def study(tmp_path):
    """A function: the runs of CE and PAT with these tails, three seeds."""
    block = {
        "settings": {"image_size": [32, 32], "epochs": 2},
        "methods": {"CE": {"loss": "ce"}, "PAT": {"loss": "pat"}},
        "seeds": [0, 1, 2],
    }
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({"blocks": [block]}))

    def make(pat_tail, seeds=(0, 1, 2), ce_tail=0.3):
        folder = tmp_path / f"records-{pat_tail}-{len(seeds)}-{ce_tail}"
        folder.mkdir()
        for planned in load_grid(grid):
            if planned.settings["seed"] in seeds:
                ce = planned.method == "CE"
                file_run(planned, folder, ce_tail if ce else pat_tail, 0.0 if ce else -0.5)
        return grid, folder

    return make


def test_words_follow_the_records(study):
    higher = answer("X", load_runs(*study(0.6)), resamples=100)
    assert (
        "points of tail (higher, +" in higher
        and "a shift after training does not replace PAT" in higher
    )
    lower = answer("X", load_runs(*study(0.2)), resamples=100)
    assert "points of tail (lower, −" in lower and "without another training" in lower
    single = answer("X", load_runs(*study(0.6, seeds=(0,))), resamples=100)
    assert "In this one run: no shift" in single and "higher" not in single
    assert "one run" not in higher
    # A second seed of CE alone is no seed of both.
    grid, folder = study(0.6, seeds=(0, 1))
    for path in folder.glob("*pat-seed1*"):
        path.unlink()
    assert answer("X", load_runs(grid, folder), resamples=100) == single
    grid, folder = study(0.5)
    for path in folder.glob("*pat*"):
        path.unlink()
    assert answer("X", load_runs(grid, folder)) == "X: PAT and cross-entropy are still to run."


def test_several_benchmarks_are_answered_in_a_few_sentences(study):
    higher, lower = load_runs(*study(0.6)), load_runs(*study(0.2))
    reach, others, differences = answers({"A": higher, "B": lower, "C": higher}, resamples=100)
    assert "on A (tail higher)" in differences and "on B (tail lower)" in differences
    assert others == ""  # there is no other loss
    outside, within = reach.split("; ")
    assert outside.startswith("More than a prior on A (") and " points) and C (" in outside
    assert within == (
        "no more than a prior on B: a shift of cross-entropy reaches both in the mean."
    )
    single = load_runs(*study(0.6, seeds=(0,)))
    reach, _, differences = answers({"A": higher, "D": single}, resamples=100)
    assert (
        "on D (tail one seed)" in differences
        and "more than a prior in the means only on D (" in reach
    )
    assert answers({"A": higher}, resamples=100)[0] == answer("A", higher, resamples=100)
    # Outside every shift in the mean, with a tail that two seeds do not show to be higher.
    scattered = load_runs(*study(0.35, seeds=(0, 1)))
    for run in scattered:
        if run.record and run.method == "PAT" and run.seed == 1:
            file_run(run.planned, run.folder, 0.6, -0.5)
    assert "but no higher tail of PAT is shown" in answer("E", scattered, resamples=100)
    assert answers({})[0] == "The runs of this chapter are still to come."


def test_each_method_is_shown_at_the_shift_that_validation_chooses(study):
    table = summary(load_runs(*study(0.6)))
    assert table.loc["CE", "shift"] == "τ = 0"
    assert table.loc["PAT", "shift"] == "τ = −0.5"
    # IoU of hits h of as many true and predicted: h / (2 - h).
    tail = 0.6 - 0.025
    assert table.loc["PAT", "shifted_tail"] == pytest.approx(tail / (2 - tail), abs=5e-3)
    assert table.loc["PAT", "excess"] > 0.1 and np.isnan(table.loc["CE", "excess"])


def test_runs_without_counts_under_shifts_are_left_out_and_named(study):
    grid, folder = study(0.6)
    whole, said = chapter.with_shifts({"X": load_runs(grid, folder)})
    assert said == "" and len(whole["X"]) == 6
    old = [path for path in sorted(folder.glob("*.npz")) if "seed0" in path.name]
    for path in old:
        with np.load(path) as kept:
            arrays = {k: v for k, v in kept.items() if "shift" not in k}
        np.savez(path, **arrays)
    runs = load_runs(grid, folder)
    shown, said = chapter.with_shifts({"X": runs, "Y": []})
    assert list(shown) == ["X"] and {run.seed for run in shown["X"]} == {1, 2}
    assert "left out here: CE and PAT of seed 0 on X. The scores" in said
    assert summary(shown["X"]).seeds.tolist() == [2, 2]


def test_under_one_prior_are_the_scores_at_kappa_1(study):
    runs = load_runs(*study(0.6))
    table = at_pixel_prior(runs)
    tail = 0.6 + 0.05
    assert table.loc["PAT", "tail"] == pytest.approx(tail / (2 - tail), abs=5e-3)
    # All of a class are found less often the further κ is from -0.5, of most classes.
    assert table.loc["PAT", ["best_pixel_accuracy", "best_miou"]].tolist() == [0, 0]
    assert prior_words("X", runs) == (
        "X: PAT has its best pixel accuracy at κ = 0 (expected 0.75 to 1.25: not as expected) and "
        "mIoU at κ = 0 (expected 0.25 to 0.75: not as expected)."
    )


def test_a_best_at_the_end_of_the_grid_decides_nothing(study, monkeypatch):
    monkeypatch.setattr(chapter, "STRENGTHS", {"kappa": (0.0,)})
    assert prior_words("X", load_runs(*study(0.6))).count("not decided") == 2


def test_weights_alone_are_named_where_they_are_outside_too(study):
    runs = load_runs(*study(0.6))
    others = [
        replace(run, planned=replace(run.planned, method=chapter.MEDIAN))
        for run in runs
        if run.method == "PAT"
    ]
    said = answer("X", [*runs, *others], resamples=100)
    pat = summary(runs).loc["PAT", "excess"]
    assert f"(median frequency) is {100 * pat:.1f} points outside as well" in said


def test_losses_above_pat_are_named(study):
    runs, lower = load_runs(*study(0.6)), load_runs(*study(0.4))
    others = [
        replace(run, planned=replace(run.planned, method="Other"))
        for run in runs
        if run.method == "PAT"
    ]
    _, said, _ = answers({"A": [*lower, *others], "B": runs}, resamples=100)
    assert said.startswith(
        "Other losses, moved in the same way, have a higher mean than PAT in both"
    )
    assert said.endswith("scores: Other on 1 of 2.")
    both = {"A": [*lower, *others], "B": [*runs, *others]}
    assert answers(both, resamples=100)[1].endswith("on all 2 is, in the mean, Other.")
    assert answers({"A": runs, "B": [*runs, *others]}, resamples=100)[1] == ""
    # The seeds that both have count, and two of them are enough.
    for number, count in ((2, 1), (1, 0)):
        fewer = [of for of in others if of.seed < number]
        _, said, _ = answers({"A": [*lower, *others], "B": [*lower, *fewer]}, resamples=100)
        assert f"scores: Other on {1 + count} of 2." in said
        assert said.endswith("the table of all shifts has them.") == (count == 0)
    assert (
        " On B, losses with fewer than two seeds in common with PAT are left out of this; " in said
    )


def test_the_excess_is_over_the_seeds_that_cross_entropy_has(study):
    runs = load_runs(*study(0.6))
    first = [run for run in runs if run.method == "PAT" or run.seed == 0]
    table = summary(first)  # PAT with three seeds, cross-entropy with the first
    assert table.loc["PAT", ["seeds", "shared"]].tolist() == [3, 1]
    one = summary([run for run in runs if run.seed == 0])
    assert table.loc["PAT", "excess"] == pytest.approx(one.loc["PAT", "excess"], abs=1e-12)
    assert table.loc["PAT", "excess"] != pytest.approx(summary(runs).loc["PAT", "excess"], abs=1e-6)
    # One seed of both is not enough to be outside on a benchmark.
    assert chapter.outside_words({"A": runs, "B": first}).count("none yet") == 1


def test_a_loss_outside_everywhere_is_not_as_expected(study):
    higher, lower = load_runs(*study(0.6)), load_runs(*study(0.2))
    said = chapter.outside_words({"A": higher, "B": lower})
    assert said.endswith("with cross-entropy on each (PAT), this is as expected.")
    said = chapter.outside_words({"A": higher, "B": higher})
    assert said.endswith("not as expected (PAT).")
    assert "needs several data sets" in chapter.outside_words({"A": higher})
    single = load_runs(*study(0.6, seeds=(0,)))
    assert "(none yet), this is as expected" in chapter.outside_words({"A": higher, "B": single})


def test_losses_above_cross_entropy_at_their_own_shifts_are_named(study):
    def contrasts(runs):
        return {m: chapter.shifted_contrasts(runs, m, 100) for m in ("miou", "tail")}

    higher, lower = (contrasts(load_runs(*study(tail))) for tail in (0.6, 0.2))
    points = [f"{100 * higher[m]['PAT'].mean:+.1f}" for m in ("miou", "tail")]
    said = chapter.higher_in_both({"A": higher, "B": lower})
    assert said.endswith(f"cross-entropy for PAT ({', '.join(points)}) on A; for no loss on B.")
    assert chapter.higher_in_both({"B": lower}).endswith("cross-entropy for no loss.")
    only_one = {"miou": higher["miou"], "tail": lower["tail"]}
    assert chapter.higher_in_both({"A": only_one}).endswith("cross-entropy for no loss.")
    one_seed = contrasts(load_runs(*study(0.6, seeds=(0,))))
    assert "yet" in chapter.higher_in_both({"A": one_seed})


def test_a_shift_at_the_end_of_the_grid_is_named(study, monkeypatch):
    runs = load_runs(*study(0.6))
    assert chapter.end_words({"A": runs}) == ""
    monkeypatch.setitem(chapter.TRIED, "tau", (-0.5, 0.0, 0.25))
    assert chapter.end_words({"A": runs}).endswith("tried for PAT on A.")


def test_changes_of_classes_follow_the_counts(study):
    table = class_changes(load_runs(*study(0.6)))
    record = load_runs(*study(0.5))[0].record.result
    pixels = np.array(record["class_counts"]) / np.sum(record["class_counts"])
    by_name = dict(zip(record["class_names"], pixels, strict=True))
    assert list(table.index) == sorted(by_name, key=by_name.get, reverse=True)
    np.testing.assert_allclose(table.pixels, [by_name[name] for name in table.index])
    # As many images hold each class: PAT's prior is flat.
    np.testing.assert_allclose(table.weight * table.pixels, 1 / CLASSES)
    tail = table.loc[record["class_names"][-1]]
    assert tail.PAT - tail.CE == pytest.approx(0.6 / 1.4 - 0.3 / 1.7, abs=5e-3)
    assert tail.PAT_shifted - tail.CE_shifted == pytest.approx(0.575 / 1.425 - 0.3 / 1.7, abs=5e-3)


def test_the_own_shift_of_cross_entropy_is_told(study):
    runs = load_runs(*study(0.6))
    table = summary(runs)
    said = chapter.own_shift_words({"X": runs, "Y": []})
    assert "tail by 0.0, 0.0, 0.0 on X points." in said  # validation leaves CE as it is
    beside = 100 * (table.loc["PAT", "shifted_tail"] - table.loc["CE", "tail"])
    assert said.endswith(f", +{beside:.1f} on X.")
    assert "still to run" in chapter.own_shift_words({})


def test_the_rank_correlation_of_classes_is_that_of_scipy(study, monkeypatch):
    runs = load_runs(*study(0.6))
    table = class_changes(runs)
    exact = stats.spearmanr(table.weight, table.PAT - table.CE).statistic
    said = chapter.class_words({"X": runs, "Y": []})
    assert f"shifted: {exact:+.2f} → ".replace("-", "−") in said and "on X (8 classes)." in said
    monkeypatch.setattr(chapter, "FEWEST", 9)  # classes
    assert "still to run" in chapter.class_words({"X": runs})
    assert "still to run" in chapter.class_words({})


def test_chapter_on_these_records_and_on_none(study, tmp_path):
    grid, folder = study(0.6)
    page = Chapter("features_or_prior", records=str(folder), grids=[str(grid)], resamples=100)
    rows = page.tables["features-or-prior-shifts"]
    assert list(rows) == ["CE", "PAT"] and "→" in rows["PAT"]["tail (%)"]
    (pat,) = page.tables["features-or-prior-excess"].values()
    assert pat["δ (points; seeds)"].startswith("+")
    assert pat["tail minus that of CE"].startswith("higher: +")
    assert page.tables["features-or-prior-one-prior"]["PAT"]["κ of the best mIoU"] == "0"
    assert page.glued["features-or-prior-kappa"].count("not as expected") == 2
    assert len(page.tables["features-or-prior-classes"]) == CLASSES
    assert "does not replace PAT" in page.glued["features-or-prior-answer"]
    (tmp_path / "empty").mkdir()
    page = Chapter("features_or_prior", records=str(tmp_path / "empty"), resamples=100)
    assert page.glued["features-or-prior-answer"] == "The runs of this chapter are still to come."
    assert re.search(r"None of the \d+ runs of unet.yaml is done yet", page.text)
