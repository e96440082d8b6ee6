"""Scores under shifts of the logits, from the counts of a run."""

import numpy as np
import pandas as pd
import pytest

from patlib import RunConfig, train
from patlib.study.grids import PlannedRun
from patlib.study.runs import Run
from patlib.study.shifts import best_shift, excess, shift_curve, shifted_counts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run, filed as the study files its records."""
    folder = tmp_path_factory.mktemp("run")
    config = RunConfig(
        image_size=(32, 48),
        model_params={"width": 4, "stages": 2},
        epochs=1,
        batch_size=32,
        precision="32-true",
        output_dir=str(folder / "run"),
    )
    record = train(config, progress=False)
    planned = PlannedRun("PAT", config.settings())
    record.save(folder / f"{planned.name}.json")
    (folder / f"{planned.name}.npz").write_bytes((folder / "run/test_images.npz").read_bytes())
    return Run(planned, record, folder)


def test_a_curve_has_the_scores_of_the_record(run):
    curve = shift_curve([run, run], "kappa").set_index("strength")
    assert curve.index.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25]
    for name in ("miou", "pixel_accuracy", "tail", "miou_c"):
        assert curve[name][0] == pytest.approx(run.score(name))
    chosen = run.record.result["shifted"]
    for kind in ("tau", "kappa"):
        strength = chosen[kind]["prior_shift"][kind]
        for split in ("test", "validation"):
            scores = shift_curve([run], kind, split).set_index("strength").loc[strength]
            assert scores["miou"] == pytest.approx(chosen[kind][split]["miou"])
    assert dict([best_shift([run])]) == chosen["any"]["prior_shift"]


def test_counts_under_a_shift(run):
    images = run.images(("counts", "shift_strengths", "shifted_tp"))
    assert np.array_equal(shifted_counts(run, "tau", 0.0), images["counts"])
    moved = shifted_counts(run, "tau", 1.0)
    assert np.array_equal(moved[:, 1], images["counts"][:, 1])  # the truth stays
    assert np.array_equal(moved[:, 2].sum(1), images["counts"][:, 2].sum(1))  # every pixel a label
    assert not np.array_equal(moved[:, 0], images["counts"][:, 0])
    with pytest.raises(ValueError, match=r"shift must be one of .*got \('tau', 3.0\)"):
        shifted_counts(run, "tau", 3.0)


def test_the_best_shift_is_chosen_on_validation(run, monkeypatch):
    """Of equals the smallest; the test images are not read."""

    def curve(runs, kind, split):
        assert split == "validation"
        miou = {"tau": [0.2, 0.3, 0.3, 0.1], "kappa": [0.3, 0.3, 0.2, 0.2]}[kind]
        return pd.DataFrame({"strength": [-1.0, -0.5, 0.25, 0.5], "miou": miou})

    monkeypatch.setattr("patlib.study.shifts.shift_curve", curve)
    assert best_shift([run]) == ("tau", 0.25)


@pytest.mark.parametrize(
    ("miou", "tail", "expected"),
    [
        (0.50, 0.10, 0.0),  # a point of the curve
        (0.45, 0.15, 0.0),  # half-way between two
        (0.50, 0.20, 0.05),  # short by 5 points in both at (0.45, 0.15)
        (0.30, 0.05, -0.12),  # a point with both 12 points or more above: (0.43, 0.17)
        (0.60, 0.05, 0.10),  # above the highest mIoU
    ],
)
def test_excess_over_a_curve(miou, tail, expected):
    curve = pd.DataFrame({"miou": [0.5, 0.4, 0.3], "tail": [0.1, 0.2, 0.2]})
    assert excess(curve, miou, tail) == pytest.approx(expected, abs=6e-3)
