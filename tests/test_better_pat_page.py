"""The chapter on a better PAT: who wins and who is chosen follows from the counts of records."""

import itertools

import numpy as np
import pytest
import yaml
from chapters import Chapter
from fake_runs import fake_record
from figures import better_pat as chapter

from patlib.priors import KINDS, STRENGTHS
from patlib.records import RunRecord
from patlib.study.grids import load_grid
from patlib.study.runs import load_runs

CLASSES, IMAGES = 6, 20
METHODS = {
    "CE": {"loss": "ce"},
    "BMS": {"loss": "bms"},
    "PAT": {"loss": "pat"},
    "1/√S": {"loss": "pat", "loss_params": {"size_exponent": 0.5}},
}


def file_run(planned, folder, tail, rest, accuracy):
    """A record with these shares of the pixels found, at all shifts alike.

    ``accuracy`` is the share of the pixels found of the largest class, which decides the pixel
    accuracy.
    """
    fake_record(planned, folder)
    path = folder / f"{planned.name}.json"
    record = RunRecord.load(path)
    record.result["class_counts"] = [10000, 100, 100, 100, 10, 10]
    record.result["class_names"] = list("abcdef")
    record.result["class_images"] = [IMAGES] * CLASSES
    record.save(path)
    noise = np.random.default_rng(planned.settings["seed"]).normal(0, 0.002)  # of the seed
    true = np.tile([10000, 1000, 1000, 1000, 1000, 1000], (IMAGES, 1))
    share = np.array([accuracy, rest, rest, rest, tail, tail]) + noise
    tp = (true * share).astype(int)
    shifts = [(kind, s) for kind in KINDS for s in STRENGTHS[kind]]
    arrays = {"shift_kinds": [k for k, _ in shifts], "shift_strengths": [s for _, s in shifts]}
    for prefix in ("", "validation_"):
        arrays[f"{prefix}counts"] = np.stack([tp, true, true], 1)
        arrays[f"{prefix}shifted_tp"] = np.stack([tp] * len(shifts))
        arrays[f"{prefix}shifted_predicted"] = np.stack([true] * len(shifts))
    np.savez(folder / f"{planned.name}.npz", **arrays)


@pytest.fixture
def study(tmp_path):
    """A function: the runs with records of these shares: method -> tail, rest, accuracy."""
    numbers = itertools.count()

    def make(shares, seeds=(0, 1, 2)):
        folder = tmp_path / f"records-{next(numbers)}"
        folder.mkdir()
        settings = {"image_size": [32, 32], "epochs": 2}
        block = {"settings": settings, "methods": METHODS, "seeds": list(seeds)}
        grid = folder / "grid.yaml"
        grid.write_text(yaml.safe_dump({"blocks": [block]}, sort_keys=False))
        for planned in load_grid(grid):
            if planned.method in shares:
                file_run(planned, folder, *shares[planned.method])
        return grid, folder

    return make


CE, BMS = (0.1, 0.5, 0.9), (0.4, 0.4, 0.9)


def words(grid, folder):
    return {j.method: j.word for j in chapter.judge(load_runs(grid, folder), resamples=100)}


def test_a_candidate_wins_by_all_three_conditions(study):
    shares = {"CE": CE, "BMS": BMS, "PAT": (0.5, 0.5, 0.9), "1/√S": (0.3, 0.55, 0.9)}
    assert words(*study(shares)) == {"PAT": chapter.WINS, "1/√S": chapter.FAILS}  # tail of BMS
    lower_miou = {**shares, "PAT": (0.5, 0.2, 0.9)}
    assert words(*study(lower_miou))["PAT"] == chapter.FAILS
    less_accurate = {**shares, "PAT": (0.5, 0.6, 0.7)}
    assert words(*study(less_accurate))["PAT"] == chapter.FAILS


def test_differences_are_those_of_the_counts(study):
    """IoU of a share h found, of as many true and predicted: h / (2 - h)."""
    shares = {"CE": CE, "BMS": BMS, "PAT": (0.5, 0.5, 0.9)}
    (pat,) = chapter.judge(load_runs(*study(shares)), resamples=100)

    def iou(h):
        return h / (2 - h)

    assert pat.tail.reference == "BMS"
    assert pat.tail.mean == pytest.approx(iou(0.5) - iou(0.4), abs=2e-3)
    assert pat.miou.mean == pytest.approx((iou(0.5) - iou(0.1)) / 3, abs=2e-3)
    assert pat.pixel_accuracy == pytest.approx(2 * 0.4 * 1000 / 15000, abs=2e-3)


def test_an_interval_that_holds_0_wins_in_the_mean_only():
    wide = chapter.Contrast("PAT", "CE", 0.01, -0.01, 0.03, 2, 2)
    sure = chapter.Contrast("PAT", "CE", 0.01, 0.005, 0.03, 2, 2)
    assert chapter.Judgement("PAT", wide, sure, 0.0).word == chapter.IN_MEAN
    assert chapter.Judgement("PAT", sure, sure, -0.0099).word == chapter.WINS
    assert chapter.Judgement("PAT", sure, sure, -0.0101).word == chapter.FAILS


def test_the_answer_follows_the_verdicts(study):
    shares = {"CE": CE, "BMS": BMS, "PAT": (0.5, 0.5, 0.9)}
    wins = chapter.judge(load_runs(*study(shares)), resamples=100)
    assert chapter.answer({"X": wins}) == "Yes, of what was judged on X: PAT on X."
    fails = chapter.judge(load_runs(*study({**shares, "PAT": (0.3, 0.5, 0.9)})), resamples=100)
    said = chapter.answer({"X": fails, "Y": []})
    assert said.startswith("No candidate that was judged wins. The tail is shown to be higher ")
    (pat,) = fails
    number = f"{100 * pat.tail.mean:.1f}".replace("-", "−")
    assert f"best baseline for none (all that were judged: {number} points), " in said
    assert pat.miou.verdict() == "higher"
    assert said.endswith(f"for PAT on X (+{100 * pat.miou.mean:.1f}).")
    in_tail = [*wins, *fails]
    ends = [f"{100 * min(j.tail.mean for j in in_tail):.1f}".replace("-", "−")]
    ends.append(f"+{100 * max(j.tail.mean for j in in_tail):.1f}")
    said = chapter._shown_higher({"X": in_tail})
    assert f"for PAT on X ({ends[1]}) (all that were judged: {ends[0]} to {ends[1]} points)" in said
    assert chapter.answer({"X": []}).startswith("Not decided yet")
    wide = chapter.Contrast("PAT", "CE", 0.01, -0.01, 0.03, 2, 2)
    in_mean = [chapter.Judgement("PAT", wide, wide, 0.0)]
    said = chapter.answer({"X": fails, "Y": in_mean})
    assert said.startswith(
        "No candidate that was judged is shown to win; in the mean PAT on Y wins, and none on X. "
        "The tail is"
    )
    assert " wins. The tail is" in chapter.answer({"Y": in_mean})


def test_one_seed_is_not_judged(study):
    shares = {"CE": CE, "BMS": BMS, "PAT": (0.5, 0.5, 0.9)}
    assert chapter.judge(load_runs(*study(shares, seeds=[0]))) == []
    grid, folder = study(shares)
    for path in folder.glob("*bms-seed[12]*"):
        path.unlink()
    assert chapter.judge(load_runs(grid, folder)) == []


def test_screening_takes_the_highest_tail_of_those_that_keep_miou_and_accuracy(study):
    def chosen(shares):
        table = chapter.screening(load_runs(*study(shares, seeds=[100])))
        return table.index[table.chosen].tolist() if len(table) else None

    shares = {"CE": CE, "BMS": (0.2, 0.5, 0.9), "PAT": (0.5, 0.5, 0.75), "1/√S": (0.3, 0.5, 0.9)}
    assert chosen(shares) == ["1/√S"]  # PAT loses too much pixel accuracy
    assert chosen({**shares, "PAT": (0.5, 0.5, 0.9)}) == ["PAT"]
    none_fits = {m: (tail, 0.3, 0.8) if m != "CE" else CE for m, (tail, *_) in shares.items()}
    assert chosen(none_fits) == ["PAT"]  # the highest sum of mIoU and tail
    assert chosen({m: of for m, of in shares.items() if m != "BMS"}) == []  # a trial is missing
    assert chosen({}) is None


def test_chapter_on_these_records_and_on_none(study, tmp_path):
    shares = {"CE": CE, "BMS": BMS, "PAT": (0.5, 0.5, 0.9), "1/√S": (0.3, 0.55, 0.9)}
    grid, folder = study(shares)
    given = dict(grids=[str(grid)], screened=str(grid), resamples=100)
    page = Chapter("better_pat", records=str(folder), **given)
    assert page.glued["better-pat-answer"].startswith("Yes, of what was judged on ")
    verdicts = [row["verdict"] for row in page.tables["better-pat-judged"].values()]
    assert verdicts == [chapter.WINS, chapter.FAILS]
    assert list(page.tables["better-pat-screening"]) == list(METHODS)
    (tmp_path / "empty").mkdir()
    page = Chapter("better_pat", records=str(tmp_path / "empty"))
    assert page.glued["better-pat-answer"].startswith("Not decided yet")
    assert "None of the 9 runs of candidates.yaml is done yet" in page.text
