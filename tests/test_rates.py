"""The trials of learning rates: every method has the same, and only validation decides."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_runs import fake_record

from patlib.records import RunRecord
from patlib.study.grids import load_grid

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("rates", ROOT / "study" / "rates.py")
rates = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rates)


def test_every_method_has_the_same_trials_on_data_held_out_by_group():
    planned = load_grid(rates.GRID)
    by_method = {}
    for run in planned:
        settings = run.settings
        assert (settings["split_scheme"], settings["seed"]) == ("grouped", 100)
        rate = settings["learning_rate"]
        by_method.setdefault((settings["dataset"], run.method), []).append(rate)
    assert len(by_method) == 6 and len(planned) == 18
    assert {tuple(r) for r in by_method.values()} == {(0.0003, 0.001, 0.003)}


def test_what_is_left_out_of_the_study_is_in_none_of_its_grids():
    kept, left_out = (
        {run.name for name in names for run in load_grid(rates.GRID.with_name(f"{name}.yaml"))}
        for names in (["segnet", "unet", "rates"], ["left_out"])
    )
    assert left_out and not kept & left_out


def test_the_highest_validation_score_of_the_last_tenth_is_chosen(tmp_path):
    methods = {
        m: [{"loss": m, "learning_rate": r} for r in (0.001, 0.01)] for m in ("ce", "focal", "bms")
    }
    block = {"settings": {"epochs": 20, "image_size": [32, 32]}, "methods": methods, "seeds": [0]}
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({"blocks": [block]}))
    runs = {(r.method, r.settings["learning_rate"]): r for r in load_grid(grid)}
    early, late = np.linspace(0.9, 0.1, 20), np.linspace(0.1, 0.4, 20)  # ends at 0.1 and 0.4

    def file(method, rate, curve):
        fake_record(runs[method, rate], tmp_path)
        path = tmp_path / f"{runs[method, rate].name}.json"
        record = RunRecord.load(path)
        record.result["curves"]["validation_miou"] = curve.tolist()
        record.save(path)

    for rate, curve in ((0.001, early), (0.01, late)):
        file("ce", rate, curve)
        file("focal", rate, curve[::-1])
    file("bms", 0.001, late)
    table = rates.trials(grid, tmp_path)
    chosen = {method: row for (_, method), row in table["chosen"].items()}
    assert chosen["ce"] == 0.01 and chosen["focal"] == 0.001
    assert np.isnan(chosen["bms"])  # its other trial is missing
    ce = next(row for (_, method), row in table.iterrows() if method == "ce")
    assert ce[0.01] == pytest.approx(late[-2:].mean())
