"""The page on cost: the benchmark behind it, and that its numbers are those of the records."""

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from chapters import Chapter, stored_glue, stored_tables
from fake_runs import fake_record, grid_file
from figures import cost
from figures.cost import plot_figure6_quantities, plot_time_memory

from patlib.losses import LOSSES, CELoss, PATLoss
from patlib.records import RunRecord
from patlib.study.grids import load_grid
from patlib.study.runs import load_runs

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"
PAPER = ["ce", "focal", "cb", "cb_focal", "bms", "ldam", "blv", "pat"]
EXTRA = ["F.cross_entropy", "ce, one-hot", "pat, one-hot"]


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("common")


@pytest.fixture
def quick_record(common, tmp_path, monkeypatch):
    figure6 = importlib.import_module("figure6")
    monkeypatch.setattr(common, "RECORDS", tmp_path)
    monkeypatch.setattr("sys.argv", ["figure6.py", "--quick", "--device", "cpu"])
    figure6.main()
    return json.loads((tmp_path / "figure6-cpu-quick.json").read_text())


@pytest.mark.parametrize("temperature", [20.0, 0.3])
def test_textbook_losses_are_those_of_patlib(common, temperature):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 5, 9, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (3, 9, 7), generator=generator)  # class 4 is absent
    target[0, :2] = 255
    target[1] = 255  # an image without a valid pixel
    pairs = [
        (common.textbook_ce, CELoss()),
        (lambda x, y: common.textbook_pat(x, y, temperature), PATLoss(temperature=temperature)),
    ]
    for textbook, loss in pairs:
        x, y = (logits.clone().requires_grad_() for _ in range(2))
        expected, value = textbook(x, target), loss(y, target)
        expected.backward()
        value.backward()
        assert expected.dtype == torch.float64
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(y.grad, x.grad, rtol=1e-11, atol=1e-16)


def test_quick_benchmark_measures_what_it_says(quick_record):
    rows = {(row["data_set"], row["loss"]): row for row in quick_record["results"]}
    shapes = {"Oxford-IIIT Pet": (3, 5920), "Cityscapes": (20, 1200), "NYUv2": (14, 800)}
    assert list(rows) == [(name, loss) for name in shapes for loss in [*PAPER, *EXTRA]]
    batch = quick_record["setting"]["batch_size"]
    for (name, loss), row in rows.items():
        num_classes, train_images = shapes[name]
        assert (row["num_classes"], row["steps_per_epoch"]) == (num_classes, train_images // batch)
        for key in ("median", "q1", "q3"):
            seconds = row["step_seconds"][key] * row["steps_per_epoch"]
            assert row["epoch_seconds"][key] == pytest.approx(seconds)
        assert row["step_seconds"]["n"] == row["ratio_to_F.cross_entropy"]["n"] == 2
        assert 0 < row["device_use"]["median"] < 1.1
        # Weights and two moments are there all the time; the step needs its activations on top.
        assert row["peak_bytes"] > row["held_bytes"] > 0
        # The one-hot labels, as int64, are there when the loss is computed.
        height, width = row["image_size"]
        labels = 8 * batch * num_classes * height * width
        if loss == "pat, one-hot" and num_classes > 3:
            assert row["peak_bytes"] - rows[name, "pat"]["peak_bytes"] > labels
    for name in shapes:
        assert rows[name, "ce"]["ratio_to_ce"]["median"] == 1
        assert rows[name, "ce, one-hot"]["ratio_to_ce, one-hot"]["median"] == 1
    assert len({row["held_bytes"] for (name, _), row in rows.items() if name == "NYUv2"}) == 1


def test_held_bytes_counts_weights_moments_and_batch(common):
    figure6 = importlib.import_module("figure6")
    step = figure6.Step((32, 32), 3, 2, 2, torch.device("cpu"))
    before = [w.clone() for w in step.model.parameters()]
    step(torch.nn.functional.cross_entropy)
    weights = sum(w.numel() for w in before)
    states = sum(b.nbytes for b in step.model.buffers()) + 4 * len(before)  # Adam counts its steps
    batch = 4 * 2 * 3 * 32 * 32 + 8 * 2 * 32 * 32
    assert step.held_bytes() == 4 * 3 * weights + states + batch
    # The same weights for all losses.
    assert all(torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))


def test_page_says_what_other_records_hold(tmp_path):
    """Numbers and words follow the records: here of a slower PAT that needs more memory, and of
    losses of the same work that seem to differ by up to 20 %."""
    records = tmp_path / "records"
    shutil.copytree(RECORDS, records)
    path = records / "figure6-cpu.json"
    content = json.loads(path.read_text())
    content["cpu"] = "an abacus"
    for row in content["results"]:
        if row["loss"] == "pat":
            row["ratio_to_ce"] = {"median": 3.21, "q1": 3.2, "q3": 3.22, "n": 9}
            row["ratio_to_F.cross_entropy"] = {"median": 0.54, "q1": 0.53, "q3": 0.55, "n": 9}
            row["peak_bytes"] = 1_234_000_000
            row["device_use"] = {"median": 0.001, "q1": 0.001, "q3": 0.001, "n": 9}
        elif row["loss"] in LOSSES:
            row["peak_bytes"] = 1_000_000_000
            row["device_use"] = {"median": 0.009, "q1": 0.009, "q3": 0.009, "n": 9}
        if row["loss"] in ("focal", "cb", "cb_focal"):
            row["ratio_to_ce"] = {"median": 0.97, "q1": 0.8, "q3": 1.02, "n": 9}
        elif row["loss"] == "blv":
            row["device_use"] = {"median": 0.012, "q1": 0.012, "q3": 0.012, "n": 9}
        elif row["loss"] == "pat, one-hot":
            row["ratio_to_F.cross_entropy"] = {"median": 0.85, "q1": 0.8, "q3": 0.9, "n": 9}
    path.write_text(json.dumps(content))
    (records / "figure6-cuda.json").write_text(json.dumps(content | {"gpu": "a toy GPU"}))
    page = Chapter(
        "cost",
        records=str(records),
        image_size=[17, 23],
        num_classes=3,
        batch_size=1,
        temperature=0.5,
        repetitions=2,
        seed=1,
    )
    values = page.glued
    texts = {name: _text(rows) for name, rows in page.tables.items()}
    assert values["cost-cpu"] == "an abacus"
    assert values["cost-now-shape"] == "1 x 3 x 17 x 23"
    assert texts["cost-formula"].count("3.21 (3.20 to 3.22), slower") == 3
    assert texts["cost-formula"].count("0.54 (0.53 to 0.55), faster") == 3
    # More work and yet less time, but within the noise.
    assert texts["cost-formula"].count("0.85 (0.80 to 0.90), no difference") == 3
    assert texts["cost-formula"].count("±20 %") == 3
    claims = texts["cost-statements"]
    assert claims.count("PAT to CE +23.4 %, PAT to Focal +23.4 %") == 3
    assert "BLV to PAT -19.0 %" in claims
    assert "a point or more below PAT: none; above: BLV" in claims
    assert not any(LOSSES[name].__name__ in values["cost-unmeasured"] for name in PAPER)
    assert "a toy GPU" in page.text
    on_gpu = [texts[f"cost-gpu-{name}"] for name in ("formula", "statements")]
    assert [text.count("3.21 (3.20 to 3.22), slower") for text in on_gpu] == [3, 1]
    assert "The losses alone: not measured on a GPU" in page.text


def _text(rows):
    return " ".join(cell for first, row in rows.items() for cell in (first, *row.values()))


def test_a_loss_without_a_measurement_is_left_out(tmp_path, monkeypatch):
    class New(CELoss):
        label, color, marker = "New", "#000000", "o"

    monkeypatch.setitem(LOSSES, "new", New)
    page = Chapter("cost", image_size=[17, 23], num_classes=3, batch_size=1, repetitions=1)
    assert re.fullmatch(r"Not measured yet: (\w+, )*New\.", page.glued["cost-unmeasured"])
    assert "PATLoss" not in page.glued["cost-unmeasured"]
    assert cost.measured({"pat": 0, "ce": 0}) == ["ce", "pat"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"records": "nowhere"}, "nowhere has no figure6-cpu.json"),
        ({"seeed": 1}, "has no parameter 'seeed' .did you mean 'seed'"),
    ],
)
def test_page_refuses_wrong_parameters(parameters, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Chapter("cost", only=[], **parameters)


def test_stored_page_is_of_the_stored_records():
    values = stored_glue("cost")
    figure6, alone, training = (
        json.loads((RECORDS / f"{name}-cpu.json").read_text())
        for name in ("figure6", "losses", "training")
    )
    assert values["cost-width"] == figure6["setting"]["width"]
    assert values["cost-n"] == figure6["results"][0]["step_seconds"]["n"]
    share = next(r for r in training["losses"] if r["loss"] == "blv")["share"]["median"]
    assert values["cost-share-blv"] == f"{100 * share:.1f} %"
    faster = slower = 0
    for pat in (r for r in alone["results"] if r["loss"] == "pat"):
        alike = [
            r["ratio_to_ce"]
            for r in alone["results"]
            if (r["shape"], r["dtype"]) == (pat["shape"], pat["dtype"])
            and r["loss"] in ("focal", "cb", "cb_focal")
        ]
        noise = max(abs(r[q] - 1) for r in alike for q in ("q1", "q3"))
        faster += pat["ratio_to_F.cross_entropy"]["q3"] < 1 - noise
        slower += pat["ratio_to_F.cross_entropy"]["q1"] > 1 + noise
    assert (values["cost-faster"], values["cost-slower"]) == (faster, slower)
    # Every ratio of the table is one of the record's.
    found = re.findall(
        r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", _text(stored_tables("cost")["cost-formula"])
    )
    recorded = {
        tuple(f"{row[key][q]:.2f}" for q in ("median", "q1", "q3"))
        for row in figure6["results"]
        for key in row
        if key.startswith("ratio_to_")
    }
    assert len(found) == 12 and set(found) <= recorded


def test_figures_put_every_loss_where_its_record_says():
    def spread(value):
        return {"median": value, "q1": 0.9 * value, "q3": 1.2 * value, "n": 3}

    rows = [
        dict(data_set="toy", image_size=[4, 6], num_classes=2, loss=loss)
        | dict(epoch_seconds=spread(10.0 + i), peak_bytes=1e9 * (1 + i), device_use=None)
        for i, loss in enumerate([*LOSSES, *EXTRA])
    ]
    (axis,) = plot_time_memory(rows).axes
    points = [tuple(map(float, c.lines[0].get_xydata()[0])) for c in axis.containers]
    assert points == [(1.0 + i, 10.0 + i) for i in range(len(rows))]
    time, memory, use = plot_figure6_quantities(rows, "use").axes
    assert [float(c.lines[0].get_xdata()[0]) for c in time.containers] == [p[1] for p in points]
    assert [float(c.lines[0].get_xdata()[0]) for c in memory.containers] == [p[0] for p in points]
    assert not use.containers and [t.get_text() for t in use.texts] == ["not measured"]
    # The line through the first dot, q1 to q3.
    low, high = time.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((9.0, 12.0))


def test_bfloat16_is_judged_by_the_rule_of_the_protocol(tmp_path):
    """The mean difference against the deviation of the float32 seeds, and half a point."""
    methods = {
        f"CE, {t}": {"loss": "ce", "epochs": 2 + (t == "bfloat16")} for t in ("float32", "bfloat16")
    }
    grid = grid_file(tmp_path, methods)

    def judged(differences):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for planned in load_grid(grid):
            fake_record(planned, folder)
            path = folder / f"{planned.name}.json"
            record, seed = RunRecord.load(path), planned.settings["seed"]
            moved = differences[seed] if "bfloat16" in planned.method else 0
            scores = {"miou": 0.4 + 0.01 * seed + moved, "pixel_accuracy": 0.8}
            record.result["validation"].update(scores)
            record.save(path)
        return cost.precision_table("x", load_runs(grid, folder))

    table, words = judged([0.02, 0.00, -0.005])  # mean 0.5 points, deviation 1.0
    assert words == "With 3 seeds no mean difference exceeds the deviation over seeds."
    assert "+0.5" in table.data and "1.0" in table.data
    assert judged([0.02, 0.02, 0.02])[1] == (
        "With 3 seeds the mIoU of CE differs by more than the seeds do."
    )
    (tmp_path / "none").mkdir()
    words = cost.precision_table("x", load_runs(grid, tmp_path / "none"))[1]
    assert words == "The runs in bfloat16 are still to come."
