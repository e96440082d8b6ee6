"""Scores of the study's records: those that old records gain from their counts, and the CSV."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from patlib.metrics import score_groups
from patlib.records import RunRecord
from patlib.study.grids import PlannedRun
from patlib.study.runs import Run

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "study" / "records"


@pytest.fixture(scope="module")
def study_scores():
    spec = importlib.util.spec_from_file_location("study_scores", ROOT / "study" / "scores.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(study_scores):
    return study_scores.read_runs(RECORDS / "runs")


def test_counts_give_the_stored_scores_of_every_record(runs):
    """What is computed from the counts of each image is what the run itself wrote."""
    for run in runs:
        stored = run.record.result["test"]
        bare = {**run.record.result, "test": {}}
        record = RunRecord(run.record.config, bare, run.record.provenance)
        found = Run(run.planned, record, run.folder).all_scores()
        shared = found.keys() & stored.keys()
        assert {"miou", "pixel_accuracy", "mean_accuracy", "dice_error", "iou", "tail"} <= shared
        for name in shared:
            np.testing.assert_allclose(
                found[name], stored[name], rtol=1e-9, err_msg=f"{run.planned.name}, {name}"
            )


def test_old_records_gain_scores(runs):
    old = [run for run in runs if "miou_c" not in run.record.result["test"]]
    for run in old[:: len(old) // 5] if len(old) > 5 else old:
        with np.load(run.images_path) as file:
            tp, true, predicted = file["counts"].astype(float).swapaxes(0, 1)
        with np.errstate(invalid="ignore"):
            iou = np.where(true > 0, tp / (true + predicted - tp), np.nan)
        held = [iou[:, c][true[:, c] > 0] for c in range(iou.shape[1])]
        by_class = np.mean([values.mean() for values in held if len(values)])
        assert run.score("miou_c") == pytest.approx(by_class)
        assert run.score("miou_i") == pytest.approx(np.nanmean(np.nanmean(iou, 1)))
        images = np.array(run.class_images)
        assert len(images) == len(run.record.result["class_counts"])
        assert (0 < images).all() and (images <= run.record.provenance["num_images"]["train"]).all()
        tail = np.argsort(-images, kind="stable")[len(images) - len(images) // 3 :]
        whole = np.array(run.score("iou"))
        assert run.score("tail_images") == pytest.approx(np.nanmean(whole[tail]))
        shares = np.array(run.record.result["class_counts"]) / sum(
            run.record.result["class_counts"]
        )
        if (shares < 0.01).any():
            assert run.score("rare") == pytest.approx(np.nanmean(whole[shares < 0.01]))
        with pytest.raises(ValueError, match="metric must be one of .*'miou_c'.* got 'miuo'"):
            run.score("miuo")


def test_class_images_are_those_of_the_data(runs):
    """The whole-size counts of study/datasets.py: smaller masks lose a class in few images."""
    full = json.loads((RECORDS / "datasets.json").read_text())["datasets"]
    for dataset in ("camvid", "nyuv2", "oxford_pet"):
        run = next(run for run in runs if run.planned.settings["dataset"] == dataset)
        expected = [c["images"] for c in full[dataset]["splits"]["train"]["classes"]]
        lost = np.array(expected) - np.array(run.class_images)
        assert (lost >= 0).all() and (lost <= 0.02 * np.array(expected) + 1).all()


def a_run(tmp_path, **arrays):
    """A run of two classes with these arrays beside its record, which has mIoU only."""
    scores = {"test": {"miou": 0.5}, "validation": {"miou": 0.25}}
    result = {**scores, "class_counts": [9, 1], "class_names": ["a", "b"]}
    record = RunRecord({}, result, {"data": {"train": "unknown"}})
    planned = PlannedRun("PAT", {"dataset": "synthetic", "image_size": [2, 2], "model": "segnet"})
    planned.settings.update(loss="pat", seed=0)
    np.savez(tmp_path / f"{planned.name}.npz", **arrays)
    return Run(planned, record, tmp_path)


def test_what_does_not_follow_from_the_counts_is_refused(tmp_path):
    counts = np.array([[[3, 0], [3, 1], [4, 0]]])
    run = a_run(tmp_path, counts=counts)
    assert run.score("miou") == 0.5  # the record's, not the counts'
    assert run.score("miou_i") == pytest.approx((3 / 4 + 0) / 2)
    assert run.class_images is None
    for name in ("boundary_iou", "tail_images"):
        with pytest.raises(ValueError, match="metric must be one of"):
            run.score(name)
    assert run.score("miou", "validation") == 0.25
    with pytest.raises(ValueError, match="metric must be one of 'miou', got 'miou_i'"):
        run.score("miou_i", "validation")
    run = a_run(tmp_path, counts=counts, validation_counts=counts[:, :, ::-1])
    assert run.score("miou_i", "validation") == run.score("miou_i")


# --- as CSV ---------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_records(study_scores, runs):
    """If it fails: python study/scores.py"""
    for table, name in (("score_table", "scores.csv"), ("class_table", "class_scores.csv")):
        text = getattr(study_scores, table)(runs).to_csv(index=False, lineterminator="\n")
        assert text == (RECORDS / name).read_text(), f"{name} is older than the records"


def test_every_record_has_its_row(runs):
    table = pd.read_csv(RECORDS / "scores.csv", index_col="run")
    classes = pd.read_csv(RECORDS / "class_scores.csv").groupby("run", sort=False)
    names = sorted(path.stem for path in (RECORDS / "runs").glob("*.json"))
    assert list(table.index) == names == list(classes.groups)
    for name in names:  # read by hand
        content = json.loads((RECORDS / "runs" / f"{name}.json").read_text())
        row, result = table.loc[name], content["result"]
        assert row["miou"] == pytest.approx(result["test"]["miou"], abs=5e-7)
        assert row["validation_miou"] == pytest.approx(result["validation"]["miou"], abs=5e-7)
        for setting, value in content["config"].items():
            if not isinstance(value, dict | list):
                assert row[setting] == value
            elif isinstance(value, dict):
                assert value.items() <= json.loads(row[setting]).items()
        of_classes = classes.get_group(name)
        assert of_classes["class"].tolist() == result["class_names"]
        iou = [np.nan if v is None else v for v in result["test"]["iou"]]
        np.testing.assert_allclose(of_classes["iou"], iou, atol=5e-7)
        pixels = np.array(result["class_counts"])
        np.testing.assert_allclose(of_classes["training_share"], pixels / pixels.sum(), atol=5e-7)


def test_groups_of_the_records_follow_their_counts(runs):
    for dataset, rare in (("camvid", {"bicyclist", "pedestrian"}), ("nyuv2", {"books", "tv"})):
        run = next(run for run in runs if run.planned.settings["dataset"] == dataset)
        names = run.record.result["class_names"]
        groups = score_groups(run.record.result["class_counts"], run.class_images)
        assert rare <= {names[c] for c in groups["rare"]}
        assert len(groups["tail_images"]) == len(groups["tail"]) == len(names) // 3
