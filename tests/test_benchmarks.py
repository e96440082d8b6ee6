"""The benchmarks of losses and training measure what they say, at a size that takes seconds.

That of Fig. 6 is tested with the page on cost.
"""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from patlib.batches import SplitTensors
from patlib.data import DecodedSplit, class_sizes
from patlib.losses import LOSSES
from patlib.models import MODELS

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch, tmp_path):
    """A function that imports a benchmark, whose records go into tmp_path."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(importlib.import_module("common"), "RECORDS", tmp_path)
    return importlib.import_module


def is_spread(value, n):
    """Quartiles of n times."""
    return value["n"] == n and 0 < value["q1"] <= value["median"] <= value["q3"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("losses --device nowhere", "argument --device: invalid choice: 'nowhere'"),
        ("losses --repetitions 0", "argument --repetitions: must be an integer >= 1, got '0'"),
        (
            "losses --shapes 2x3",
            "argument --shapes: must be BxLxHxW, such as 2x20x64x64, got '2x3'",
        ),
        ("losses --shapes 2x3x4x-1", "argument --shapes: must be an integer >= 1, got '-1'"),
        ("figure6 --width x", "argument --width: must be an integer >= 1, got 'x'"),
        ("training --device cud", "argument --device: invalid choice: 'cud'"),
        ("predict --device 3", "argument --device: invalid choice: '3'"),
    ],
)
def test_options_are_refused_by_name(script, monkeypatch, capsys, command, message):
    name, *options = command.split()
    monkeypatch.setattr("sys.argv", [name, *options])
    with pytest.raises(SystemExit) as ended:
        script(name).main()
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_losses_are_all_timed(script, tmp_path, monkeypatch, capsys):
    common, losses = script("common"), script("losses")
    monkeypatch.setattr("sys.argv", ["losses.py", "--quick", "--device", "cpu"])
    losses.main()
    record = json.loads((tmp_path / "losses-cpu-quick.json").read_text())
    names = ["F.cross_entropy", *LOSSES, *common.VARIANTS, "pat, one-hot"]
    rows = {(row["dtype"], row["loss"]): row for row in record["results"]}
    assert list(rows) == [(dtype, name) for dtype in ("float32", "bfloat16") for name in names]
    for row in rows.values():
        assert row["shape"] == [2, 5, 16, 24] and is_spread(row["seconds"], 2)
        assert row["peak_bytes"] >= 2 * 5 * 16 * 24 * (2 if row["dtype"] == "bfloat16" else 4)
    assert all(rows[dtype, "ce"]["ratio_to_ce"]["median"] == 1 for dtype, _ in rows)
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in names)


def test_slow_losses_are_timed_less_and_not_on_the_largest_shape(script, monkeypatch):
    losses = script("losses")
    rows = {r["loss"]: r for r in losses.measure((1, 3, 8, 8), torch.float32, CPU, 4)}
    assert rows["pat"]["seconds"]["n"] == 4
    assert rows["lovasz"]["seconds"]["n"] == rows["pat, one-hot"]["seconds"]["n"] == 3
    assert set(losses.SLOW) <= rows.keys()
    monkeypatch.setattr(losses, "HUGE", 3 * 64 - 1)
    rows = {r["loss"] for r in losses.measure((1, 3, 8, 8), torch.float32, CPU, 1)}
    assert rows >= {"pat", "pat, one-hot"} and not rows & set(losses.REGIONS)


def test_losses_have_what_they_need_of_the_batch(script):
    common = script("common")
    target = torch.tensor([[[0, 0, 1, 255]], [[0, 2, 2, 2]]])
    sizes = common.sizes_of(target, 3)
    assert sizes.tolist() == [[2, 1, 0], [1, 0, 3]]
    losses = common.build_all(sizes)
    torch.testing.assert_close(
        losses["ce, class weights"].weights, torch.tensor([7 / 9, 7 / 3, 7 / 9]).double()
    )
    weights = losses["pat, data set sizes"].class_weights  # (n / 2)^-1 (m / 2)^-1
    assert weights.tolist() == pytest.approx([2 / 3, 4, 4 / 3])


def test_training_is_measured(script, monkeypatch):
    training = script("training")
    size, batch = (32, 32), 2
    monkeypatch.setattr(training, "MODELS", {name: MODELS[name] for name in ("segnet", "unet")})
    monkeypatch.setattr(training, "MODEL_PARAMS", {"segnet": {"width": 2}})
    config = training.make_config(CPU, size, batch_size=batch)
    generator = np.random.default_rng(0)
    masks = generator.integers(11, size=(2 * (len(LOSSES) + 1), *size), dtype=np.uint8)
    images = generator.integers(256, size=(*masks.shape, 3), dtype=np.uint8)
    arrays = DecodedSplit(images, masks, np.bincount(masks.ravel(), minlength=256), "")
    given = config, SplitTensors(arrays, CPU), class_sizes(arrays, 11), 1, CPU

    rows = training.measure_losses(*given)
    assert [row["loss"] for row in rows] == list(LOSSES)
    for row in rows:
        assert all(is_spread(row[key], 1) for key in ("loss_seconds", "step_seconds", "share"))
        share = row["loss_seconds"]["median"] / row["step_seconds"]["median"]
        assert row["share"]["median"] == pytest.approx(share)
    rows = training.measure_epochs(*given)
    pairs = [*(("segnet", loss) for loss in LOSSES), ("unet", "pat")]
    assert [(row["model"], row["loss"]) for row in rows] == pairs
    assert all(is_spread(row["seconds"], 1) for row in rows)


def test_loop_is_measured_beside_bare_steps(script):
    training = script("training")
    config = training.make_config(
        CPU, (32, 32), epochs=1, batch_size=60, data_params={"num_classes": 11}
    )
    dataset = training.build_dataset("synthetic", image_size=(32, 32), num_classes=11)
    arrays = training.load_arrays(dataset)
    images, sizes = SplitTensors(arrays, CPU), class_sizes(arrays, 11)
    row = training.measure_loop(config, images, sizes, 1, CPU)
    rates = [row[f"{kind}_images_per_second"]["median"] for kind in ("train", "bare")]
    assert min(rates) > 0 and row["efficiency"]["median"] == pytest.approx(rates[0] / rates[1])
