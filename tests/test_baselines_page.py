"""Against the baselines: its words and verdicts follow from the records."""

import json
from dataclasses import replace

import numpy as np
import pytest
from chapters import Chapter
from fake_runs import fake_record, grid_file
from figures import baselines as chapter
from figures import judging, load_script, precisions

from patlib.records import RunRecord
from patlib.study.grids import load_grid
from patlib.study.runs import load_runs
from patlib.study.simultaneous import MethodScores

METHODS = {
    "CE": {"loss": "ce"},
    "PAT": {"loss": "pat"},
    "CB": {"loss": "cb"},
    "LDAM": {"loss": "ldam"},
}


@pytest.fixture
def study(tmp_path):
    """A function: the runs with records in which methods are better than CE by a bonus."""

    def make(bonus, seeds=(0, 1, 2), epochs=20, curve=None):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        grid = grid_file(folder, METHODS, seeds=seeds, epochs=epochs)
        for planned in load_grid(grid):
            if planned.method in bonus:
                fake_record(planned, folder, bonus[planned.method], images=40)
                if curve is not None:
                    path = folder / f"{planned.name}.json"
                    record = RunRecord.load(path)
                    record.result["curves"]["validation_miou"] = list(curve)
                    record.save(path)
        return load_runs(grid, folder)

    return make


def test_verdicts_and_words_follow_the_scores(study):
    runs = study({"CE": 0.0, "PAT": 0.1, "CB": -0.1})
    found = judging.Judged(runs, resamples=300)
    assert found.methods == found.several == ["CE", "PAT", "CB"]
    assert not found.complete  # LDAM was not run
    assert judging.Judged(runs, unjudged=["LDAM"], resamples=50).complete
    for metric in ("miou", "tail"):
        assert found.verdict("PAT", metric) == "higher" and found.verdict("CB", metric) == "lower"
        assert found.verdict("LDAM", metric) is None  # not run
        assert found.may_be_best(metric) == ["PAT"]
        by_method = {
            m: np.mean([run.score(metric) for run in runs if run.record and run.method == m])
            for m in ("CE", "PAT")
        }
        difference = found.against(metric)["PAT"].mean
        assert difference == pytest.approx(by_method["PAT"] - by_method["CE"], abs=1e-9)
    said = chapter.answer({"here": found}, "miou")
    assert said.startswith("The mIoU of PAT is higher than that of cross-entropy on here (+")
    assert "lower than that of cross-entropy on here (−" in chapter.answer(
        {"here": found}, "tail", "CB"
    )
    other = judging.Judged(study({"CE": 0.1, "PAT": 0.0, "CB": -0.1}), resamples=300)
    rows = chapter.best({"here": found, "there": other})
    assert rows == [["here", "PAT", "PAT", ""], ["there", "CE", "CE", ""]]
    methods, *cells = zip(*chapter.contrasts({"here": found}), strict=True)
    assert methods == ("here, PAT", "here, CB")
    assert [text.split(":")[0] for text in cells[1]] == ["higher", "lower"]
    assert cells[2] == ("3 of 3", "0 of 3")
    where, pair, beside_ce, alone, best = chapter.primary({"here": runs}, {"here": found})[1]
    assert where == "here, IoU of the tail" and " → " in pair
    assert beside_ce.startswith("higher: +") and alone.startswith("higher: +")
    assert best.startswith("CE, higher: +")  # CE is the best of the others


def test_the_scatter_of_the_two_alone_does_not_depend_on_other_methods(study):
    bonus = {"CE": 0.0, "PAT": 0.02}
    two, three = (judging.Judged(study(of), resamples=300) for of in (bonus, bonus | {"CB": 0.1}))
    for metric in judging.NAMES:
        (pooled,) = two.against(metric).values()
        for found in (two, three):
            alone = found.alone(metric)
            assert (alone.low, alone.high) == pytest.approx((pooled.low, pooled.high), abs=1e-9)
        best = three.beside_best(metric)
        minus = three.against(metric, "CB")["PAT"]
        assert best.reference == "CB" and best.mean == pytest.approx(minus.mean)
        assert best.low < best.mean < best.high < 0 and best.wins == 0
    assert two.alone("miou", "LDAM") is None
    said = chapter.answer_best({"here": three})
    assert "highest mean, the mIoU of PAT is lower on here (CB, −" in said
    assert "; and the IoU of the tail of PAT is lower on here (CB, −" in said
    nothing = judging.Judged(study({"CE": 0.0}), resamples=50)
    assert chapter.answer_best({"here": nothing}) == "No other loss has two seeds yet"
    assert judging.Judged(study({"PAT": 0.1}), resamples=50).beside_best("miou") is None


def test_verdicts_that_decide_nothing_are_told_by_number_and_range():
    phrases = {"lower": "lower", "not distinguishable": "open"}
    open_ = [("A (−0.2)", -0.002), ("B (+0.4)", 0.004), ("C (−0.9)", -0.009)]
    assert chapter.verdict_words({"not distinguishable": open_[:2]}, phrases) == (
        "open on A (−0.2) and B (+0.4)"
    )
    found = {"not distinguishable": open_}
    assert chapter.verdict_words(found, phrases) == "open on all 3 (−0.9 to +0.4)"
    found["lower"] = [("D (−3.0)", -0.03)]
    said = "lower on D (−3.0); open on the other 3 (−0.9 to +0.4)"
    assert chapter.verdict_words(found, phrases) == said


def test_methods_as_good_as_each_other_are_equal_or_not_distinguishable(study):
    found = judging.Judged(study({"CE": 0.0, "PAT": 0.0}, seeds=range(8)), resamples=300)
    assert found.verdict("PAT", "miou") in ("equal", "not distinguishable")
    assert set(found.may_be_best("miou")) == {"CE", "PAT"}


def test_a_single_seed_is_not_judged(study):
    found = judging.Judged(study({"CE": 0.0, "PAT": 0.1}, seeds=[0]), resamples=50)
    assert found.verdict("PAT", "miou") == "not judged" and found.may_be_best("miou") == []
    assert judging.text(found.against("miou")["PAT"], "miou").startswith("not judged: +")
    assert "not judged, with one seed, on x" in chapter.answer({"x": found}, "miou")
    assert chapter.best({"x": found}) == []
    ((_, *texts, seeds),) = chapter.contrasts({"x": found})
    assert all(text.startswith("not judged: +") for text in texts) and seeds == "1 of 1"
    figure = judging.plot_contrasts({"x": found})
    (legend,) = figure.legends
    assert "without a line: not judged" in legend.get_texts()[-1].get_text()
    figure.canvas.draw()
    assert 0 <= legend.get_window_extent().x0


def test_nothing_to_compare(study):
    found = judging.Judged(study({"PAT": 0.1}), resamples=50)
    assert not found.against("miou") and judging.plot_contrasts({"x": found}) is None
    assert chapter.answer({"x": found}, "miou") == "PAT and cross-entropy are still to run"
    assert judging.Judged(study({}), resamples=50).several == []


def test_a_method_that_fails_on_some_seeds_does_not_widen_the_intervals(study):
    runs = study({"CE": 0.0, "PAT": 0.02})
    failing = study({"CE": 0.0, "PAT": 0.02, "LDAM": 0.0})
    for run in failing:
        if run.method == "LDAM" and run.seed == 1:
            run.record.result["test"]["miou"] = 0.01
            images = dict(np.load(run.images_path))
            images["counts"][:, 0] = 0
            np.savez(run.images_path, **images)
    alone = judging.Judged(runs, resamples=300).against("miou")["PAT"]
    apart = judging.Judged(failing, ["LDAM"], resamples=300).against("miou")["PAT"]
    pooled = judging.Judged(failing, resamples=300).against("miou")["PAT"]
    assert (apart.low, apart.high) == (alone.low, alone.high)
    assert pooled.high - pooled.low > 3 * (alone.high - alone.low)
    judged = {"x": judging.Judged(failing, ["LDAM"], resamples=300)}
    said = chapter.left_out({"x": failing}, judged, ["LDAM"], resamples=300)
    tails = [run.score("tail") for run in failing if run.method == "LDAM"]
    assert f"on x its tail differs by {100 * (max(tails) - min(tails)):.1f} points" in said
    words = [of.verdict("PAT", "miou") for of in (judged["x"], judging.Judged(failing))]
    assert words[0] != words[1] and f"mIoU on x, {words[0]} → {words[1]}" in said
    assert chapter.left_out({"x": runs}, judged, ["LDAM"]) == ""


def test_seeds_in_another_precision_are_named(tmp_path):
    grid = grid_file(tmp_path, {"CE": {"loss": "ce"}}, seeds=(0, 1, 2))
    for planned in load_grid(grid):
        fake_record(planned, tmp_path, 0.0, images=4)
    runs = load_runs(grid, tmp_path)
    assert precisions({"here": runs}) == ""
    for run in runs:
        run.planned.settings["precision"] = "32-true" if run.seed == 1 else "bf16-mixed"
    said = precisions({"here": runs, "there": runs, "empty": []})
    assert said == "On here and there, seeds 0 and 2 in bfloat16 and seed 1 in float32."


def test_curves_that_still_rise_are_named(study):
    rising = 0.3 + 0.004 * np.arange(20)  # 0.8 points over the last two epochs
    runs = study({"CE": 0.0}, curve=rising)
    assert chapter.rises(runs)["CE"] == pytest.approx(0.008)
    assert "here: CE" in chapter.not_flat({"here": runs})
    flat = study({"CE": 0.0}, curve=np.full(20, 0.3))
    assert chapter.not_flat({"here": flat}).startswith("No curve rises")
    assert chapter.not_flat({}) == "Nothing was run yet."


def test_classes_that_gain_and_lose(study):
    runs = study({"CE": 0.0, "PAT": 0.0})
    for run in runs:
        if run.record and run.method == "PAT":
            iou = np.array(
                next(r for r in runs if (r.method, r.seed) == ("CE", run.seed)).score("iou")
            )
            run.record.result["test"]["iou"] = (
                iou + np.array([-0.2, 0, 0, 0, 0, 0, 0.05, 0.3])
            ).tolist()
    names = runs[0].record.result["class_names"]
    said = chapter.gains_and_losses(runs)
    assert said == f"gain: {names[7]} +30.0 and {names[6]} +5.0; lose: {names[0]} −20.0"
    assert chapter.gains_and_losses([]) == "not run"


def test_calibration_is_read_from_its_file(tmp_path):
    path = tmp_path / "calibration.json"
    found = {"all_intervals_hold": 0.955, "wrong_sign": 0.0025, "best_is_kept": 1.0}
    found["studies"] = 250
    path.write_text(json.dumps({"X": {"tail": {"one for all": found}}}))
    row = ("X, IoU of the tail", "the same for all losses")
    assert chapter.calibration(path) == [[*row, "95.5", "0.2", "100.0"]]
    said = (
        "Their nominal coverage is 95 %; where the scatter between seeds is the same for all "
        "losses, they reach it"
    )
    assert chapter.calibration_words(path) == f"{said}."
    assert chapter.drawn_studies(path) == "250"
    low = {**found, "all_intervals_hold": 0.87}
    tail = {"one for all": found, "each its own": low}
    path.write_text(json.dumps({"X": {"miou": {"one for all": found}, "tail": tail}}))
    assert chapter.calibration_words(path) == (
        f"{said}; where the scatter between seeds is different for each loss, they reach it except "
        "for the IoU of the tail on X (87 %)."
    )
    path.write_text("{}")
    assert chapter.calibration_words(path) == "None was drawn yet."


def test_the_scatter_that_is_drawn_is_that_of_the_records():
    calibration = load_script("study/calibration.py")
    rng = np.random.default_rng(0)
    deviations = {"a": 0.001, "b": 0.01, "c": 0.03}
    shared = rng.normal(0, 0.05, 200)
    scores = {
        m: dict(enumerate(0.5 + shared + rng.normal(0, s, 200))) for m, s in deviations.items()
    }
    images = {m: np.zeros(10) for m in scores}
    judged = MethodScores(scores, images, 5)
    pooled = calibration.scatter_of(judged, own=False)
    assert set(pooled.values()) == {judged.residual_std}
    own = calibration.scatter_of(judged, own=True)
    assert np.mean(np.square(list(own.values()))) == pytest.approx(judged.residual_std**2)
    # Taking the mean of the methods off mixes them: c keeps (2/3)^2 of its own variance, and so on.
    of = np.square(list(deviations.values()))
    left = of / 3 + of.sum() / 9  # (1 - 2/3) s_m² + Σ s² / 9
    expected = np.sqrt(left / left.mean()) * judged.residual_std
    np.testing.assert_allclose(list(own.values()), expected, rtol=0.15)


def test_the_paper_and_its_code_need_no_records_for_the_tables_of_the_paper(tmp_path):
    page = Chapter("paper_and_code", records=str(tmp_path))
    assert page.glued["paper-and-code-bms-words"].endswith("are still to come.")
    assert "None of the 88 runs of table1.yaml is done yet" in page.text
    assert 0 < page.glued["paper-and-code-paper-disagree"]


def test_history_of_the_lengths(tmp_path):
    grid = grid_file(tmp_path, {"A": {"loss": "ce"}, "B": {"loss": "pat"}}, seeds=[0], epochs=5)
    for planned in load_grid(grid):
        fake_record(planned, tmp_path, 0.1 * (planned.method == "B"))
    runs = load_runs(grid, tmp_path)
    ((where, seeds, miou, gain, *_),) = chapter.lengths([*runs, *runs])
    ce, pat = (100 * run.score("miou") for run in runs)
    assert where.endswith(" with Attention U-Net, 5") and seeds == 1
    assert miou == f"{ce:.1f} → {pat:.1f}"
    assert gain == f"+{pat - ce:.1f}"
    ((_, _, miou, gain, *_),) = chapter.lengths(runs[:1])
    assert (miou, gain) == (f"{ce:.1f} → not run", "") and chapter.lengths(runs[1:]) == []
    assert chapter.pair_of_means(runs, "miou", "B") == ""  # there is no CE
    runs = [
        replace(r, planned=replace(r.planned, method=m))
        for r, m in zip(runs, ("CE", "PAT"), strict=True)
    ]
    assert chapter.pair_of_means(runs, "miou") == f"{ce:.1f} → {pat:.1f}"


def test_the_gain_in_the_tail_is_told_by_length():
    rows = [
        ["A with X, 30", 5, "", "−2.8", "", "+6.5"],
        ["A with X, 60", 1, "", "", "", "+9.9"],  # one seed
        ["A with X, 100", 3, "", "−0.3", "", "+5.0"],
        ["A with X, 200", 2, "", "", "", ""],  # PAT was not run
        ["B with X, 20", 3, "", "+0.4", "", "+5.4"],
    ]
    said = chapter.length_words(rows)
    assert said.endswith(
        "that of CE is +6.5 after 30 epochs and +5.0 after 100 epochs on A with X."
    )
    assert chapter.length_words(rows[:2]) == chapter.length_words([]) == ""


def test_a_tail_that_rises_in_longer_runs_is_told(study):
    def runs(bonus):
        return [
            run
            for epochs, of in ((100, 0.0), (200, bonus))
            for run in study({"CE": of, "PAT": of}, seeds=[0], epochs=epochs)
        ]

    def tail(runs, epochs):
        (run,) = (
            r
            for r in runs
            if r.record and r.method == "CE" and r.planned.settings["epochs"] == epochs
        )
        return f"{100 * run.score('tail'):.1f}"

    rising = runs(0.1)
    said = chapter.tail_rises(rising)
    assert f"from {tail(rising, 100)} to {tail(rising, 200)} % on " in said
    assert said.endswith("rare classes are learned earlier.")
    assert "earlier" not in chapter.tail_rises(runs(0.0))
    assert chapter.tail_rises(study({"CE": 0.0}, seeds=[0], epochs=100)) == ""
