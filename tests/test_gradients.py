"""Gradients by class: the measurement, the fit, the states of a run, the chapter."""

import copy
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chapters import Chapter
from fake_runs import fake_record
from figures import gradients as chapter
from torch import nn

from patlib import RunConfig, load_model, train
from patlib.gradients import (
    class_gradients,
    class_ratio,
    finished_run,
    fit_exponent,
    measure,
    summarise,
    training_states,
)
from patlib.losses import build_loss
from patlib.models import build_model
from patlib.records import RunRecord
from patlib.study.grids import PlannedRun, load_grid
from patlib.study.runs import Run

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "study" / "records" / "gradients.json"

_spec = importlib.util.spec_from_file_location("study_gradients", ROOT / "study" / "gradients.py")
study = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(study)

LOSSES = [
    ("ce", {}),
    ("pat", {"weight": "none"}),
    ("pat", {"temperature": 0.7, "size_exponent": 0.5}),
    ("bms", {}),
]


def batch(num_classes=4, size=(35, 37), images=3):
    """Images and targets with an ignored border, a class absent from the second image and a third
    image without any valid pixel."""
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(images, 3, *size, generator=generator, dtype=torch.float64)
    target = torch.randint(num_classes, (images, *size), generator=generator)
    target[:, :2] = 255
    target[1][target[1] == 2] = 0
    target[2:] = 255
    return image, target


@pytest.mark.parametrize(("name", "params"), LOSSES)
@pytest.mark.parametrize(
    ("model", "model_params"),
    [("segnet", {"width": 3, "stages": 2}), ("attention_unet", {"width": 2})],
)
def test_equals_one_backward_pass_for_each_class(model, model_params, name, params):
    # 35x37 pixels: the networks pad them.
    image, target = batch()
    torch.manual_seed(0)
    network = build_model(model, 4, **model_params).double()
    before = copy.deepcopy(network.state_dict())
    loss = build_loss(name, 4, class_counts=torch.tensor([9, 7, 3, 1]), reduction="sum", **params)
    found = class_gradients(network, [(image, target)], loss, whole_network=True)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(p.grad is not None for p in network.parameters()) and network.training

    # The reference: only the pixels of one class of one image have a label.
    network.train()
    seen = {}
    network.classifier.register_forward_hook(lambda m, i, o: seen.update(features=i[0]))
    wanted = []
    for i, c in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 3)]:
        size = int((target[i] == c).sum())
        alone = torch.full_like(target, 255)
        alone[i][target[i] == c] = c
        logits = network(image)
        value = loss(logits, alone)
        weights = list(network.parameters())
        at = [logits, seen["features"], network.classifier.weight]
        grads = torch.autograd.grad(value, [*at, *weights])
        whole = sum(float(g.square().sum()) for g in grads[3:]) ** 0.5
        wanted.append((i, c, size, *(float(g.norm()) for g in grads[:3]), whole))
    columns = [np.array(column) for column in zip(*wanted, strict=True)]
    for values, expected in zip(
        (found.images, found.classes, found.sizes), columns[:3], strict=True
    ):
        np.testing.assert_array_equal(values, expected)
    assert list(found.norms) == ["logits", "features", "classifier", "network"]
    for values, expected in zip(found.norms.values(), columns[3:], strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-9)


class Uniform(nn.Module):
    """Sees the same in every pixel and is equally unsure of every class."""

    def __init__(self, num_classes):
        super().__init__()
        self.classifier = nn.Conv2d(num_classes + 1, num_classes, 1, bias=False)
        with torch.no_grad():  # the first feature is 1 everywhere and makes no difference
            self.classifier.weight[:] = torch.eye(num_classes + 1)[1:, :, None, None]

    def forward(self, images):
        features = torch.zeros(len(images), self.classifier.in_channels, *images.shape[2:])
        features[:, 0] = 2
        return self.classifier(features)


@pytest.mark.parametrize(
    ("name", "params", "shift"),
    [
        ("ce", {}, 0),
        ("pat", {"weight": "none"}, 1),
        ("pat", {}, 1),
        ("pat", {"size_exponent": 0.5}, 0.5),
    ],
)
def test_exponent_of_pixels_that_are_all_alike(name, params, shift):
    # The same error in every pixel: orthogonal at the logits, in one direction at the weights.
    target = torch.full((2, 32, 32), 255)
    for i, sizes in enumerate([(3, 50, 400), (200, 9, 70)]):
        target[i].flatten()[: sum(sizes)] = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    loss = build_loss(name, 3, reduction="sum", **params)
    found = class_gradients(Uniform(3), [(torch.zeros(2, 3, 32, 32), target)], loss, True)
    summary = summarise(found)
    expected = {"logits": 0.5, "features": 0.5, "classifier": 1, "network": 1}
    for layer, exponent in expected.items():
        assert summary[layer]["exponent"] == pytest.approx([exponent - shift] * 3, abs=1e-6)
        ratio = np.mean([largest ** abs(exponent - shift) for largest in (400 / 3, 200 / 9)])
        assert summary[layer]["ratio"] == pytest.approx(ratio, rel=1e-4)


def test_fit_equals_polyfit_and_homogenises_best():
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(30), 5)
    sizes = np.exp(rng.normal(5, 2, 150))
    norms = sizes**0.7 * np.exp(rng.normal(0, 0.4, 150) + rng.normal(0, 0.5, 30)[images])
    found = fit_exponent(sizes, norms, images)
    assert found.value == pytest.approx(np.polyfit(np.log(sizes), np.log(norms), 1)[0], rel=1e-9)
    spread = [np.std(np.log(norms / sizes**a)) for a in found.value + np.array([-0.01, 0, 0.01])]
    assert spread[1] == min(spread)

    # The interval: a plain bootstrap, image by image.
    slopes = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(images == i) for i in rng.integers(0, 30, 30)])
        slopes.append(np.polyfit(np.log(sizes[rows]), np.log(norms[rows]), 1)[0])
    width = np.subtract(*np.quantile(slopes, (0.975, 0.025)))
    np.testing.assert_allclose(
        [found.low, found.high], np.quantile(slopes, (0.025, 0.975)), atol=0.15 * width
    )
    order = rng.permutation(150)
    again = fit_exponent(sizes[order], norms[order], images[order] * 7 + 1)
    np.testing.assert_allclose(again, found, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norms": [1.0, 0.0, 1.0]}, "norms must be finite and > 0, got 0.0"),
        ({"sizes": [1, -2, 3]}, "sizes must be finite and > 0, got -2"),
        ({"sizes": [4, 4, 4]}, "must not be all equal"),
        ({"images": [0, 1]}, "same length"),
    ],
)
def test_fit_refuses(change, message):
    given = {"sizes": [1, 2, 3], "norms": [1.0, 2.0, 3.0], "images": [0, 0, 1]} | change
    with pytest.raises(ValueError, match=message):
        fit_exponent(**given)


def test_class_ratio():
    # 6 / 2 and 5 / 5; the image of one class has no ratio
    assert class_ratio([2, 4, 6, 5, 5, 9], [0, 0, 0, 1, 1, 2]) == pytest.approx((3 + 1) / 2)
    assert np.isnan(class_ratio([1, 2], [0, 1]))


def test_measurement_refuses():
    with pytest.raises(ValueError, match="got reduction='mean'"):
        class_gradients(Uniform(3), [], build_loss("ce", 3))
    images, target = torch.zeros(1, 3, 32, 32), torch.full((1, 32, 32), 255)
    with pytest.raises(ValueError, match="batches must have a valid pixel, got none"):
        class_gradients(Uniform(3), [(images, target)], build_loss("ce", 3, reduction="sum"))


def config(tmp_path, **settings):
    return RunConfig(
        **{
            "image_size": (32, 48),
            "loss": "blv",  # draws noise: the states must draw the same
            "model": "segnet",
            "model_params": {"width": 2, "stages": 2},
            "epochs": 2,
            "batch_size": 60,
            "learning_rate": 0.01,
            "device": "cpu",
            "output_dir": str(tmp_path / "run"),
            **settings,
        }
    )


def test_states_are_those_of_the_run(tmp_path):
    run = config(tmp_path)
    train(run, progress=False)
    last, _ = load_model(run.output_dir)
    states = dict(training_states(run, [0, 1, 2]))
    assert list(states) == [0, 1, 2]
    for name, value in last.state_dict().items():
        assert torch.equal(states[2].state_dict()[name], value)
    middle = [states[1].classifier.weight, last.classifier.weight]
    torch.manual_seed(run.seed)
    first = build_model("segnet", 8, width=2, stages=2)
    assert torch.equal(states[0].classifier.weight, first.classifier.weight)
    assert not torch.equal(*middle)
    # Half of the run, not a run of half the length.
    (_, half), *_ = training_states(run, [1])
    (_, short), *_ = training_states(config(tmp_path, epochs=1), [1])
    assert torch.equal(half.classifier.weight, middle[0])
    assert not torch.equal(half.classifier.weight, short.classifier.weight)

    read, ends = finished_run(run.output_dir)
    assert read.loss == "blv" and [epochs for epochs, _ in ends] == [0, 2]
    assert torch.equal(ends[0][1].classifier.weight, first.classifier.weight)
    assert torch.equal(ends[1][1].classifier.weight, last.classifier.weight)


@pytest.mark.parametrize("epochs", [[], [1, 0], [0, 0], [-1], [0, 3]])
def test_states_refuse_other_epochs(tmp_path, epochs):
    with pytest.raises(ValueError, match="epochs must be increasing numbers from 0 to 2"):
        next(training_states(config(tmp_path), epochs))


def test_states_refuse_other_runs(tmp_path):
    with pytest.raises(ValueError, match="batch_size must be at most the 240 images .* got 241"):
        next(training_states(config(tmp_path, batch_size=241), [0]))
    with pytest.raises(ValueError, match="precision must be .* got 'bf16-mixed'"):
        next(training_states(config(tmp_path, precision="bf16-mixed"), [0]))


def test_measure_takes_the_same_images_for_all(tmp_path):
    ce = config(tmp_path, loss="ce", batch_size=4)
    size = config(tmp_path, loss="pat", loss_params={"weight": "none"}, batch_size=4)
    states = list(training_states(ce, [0, 1]))
    found = [measure(c, states, num_images=6) for c in (ce, size)]
    for epochs in (0, 1):
        a, b = (part[epochs] for part in found)
        assert len(np.unique(a.images)) == 6
        for place in ("logits", "features", "classifier"):
            # 1/S is cross-entropy's gradient divided by S, wherever it is looked at.
            np.testing.assert_allclose(a.norms[place] / a.sizes, b.norms[place], rtol=1e-4)
    with pytest.raises(ValueError, match="num_images must be an integer >= 1, got 0"):
        measure(ce, states, 0)


@pytest.mark.parametrize("kind", ["datasets", "long"])
def test_record(kind):
    record = json.loads(RECORD.read_text())[kind]
    assert set(record) == set(study.DATASETS)
    for name, entry in record.items():
        assert name in study.DATASETS
        for method, run in entry["methods"].items():
            chosen = study.METHODS[method]
            assert run["config"]["dataset"] == name and run["config"]["loss"] == chosen["loss"]
            assert run["provenance"]["commit"] and run["provenance"]["date"]
            epochs = run["config"]["epochs"]
            stages = (0, epochs // 2, epochs) if kind == "datasets" else (100,)
            assert list(run["states"]) == [str(e) for e in stages] and epochs in stages
            for summary in run["states"].values():
                assert list(summary) == ["logits", "features", "classifier", "network"]
                for part in summary.values():
                    value, low, high = part["exponent"]
                    assert low <= value <= high and part["ratio"] >= 1
                    assert len(part["classes"]) == len(part["sizes"]) == len(part["norms"])
                    assert max(part["classes"]) < len(entry["class_names"])


def test_the_study_measures_the_last_network_of_a_long_run(tmp_path):
    run = config(tmp_path, epochs=2)
    assert study.networks("long", run, None) == study.networks("long", run, tmp_path) == []
    folder = tmp_path / study.run_name(run.settings())
    train(replace(run, output_dir=str(folder)), progress=False)
    ((epochs, network),) = study.networks("long", run, tmp_path)
    assert epochs == 2
    for runs in (tmp_path, None):  # the last network is taken, or trained
        short = study.networks("datasets", run, runs)
        assert [e for e, _ in short] == [0, 1, 2]
        for mine, other in zip(network.parameters(), short[-1][1].parameters(), strict=True):
            assert torch.equal(mine, other)


# -- the chapter ------------------------------------------------------------------------------


def sentence(scores, verdict, monkeypatch, low=0.6, high=0.8):
    """What the chapter says of runs with 1/S^a.

    Args:
        scores: for each seed, size exponent -> validation and test score.
        verdict: other exponent -> the verdict on the chosen one against it.
    """
    runs = []
    for seed, by_exponent in enumerate(scores):
        runs.append({})
        for a, (validation, test) in by_exponent.items():
            result = {"validation": {"miou": validation}, "test": {"miou": test}}
            planned = PlannedRun(f"{a:g}", {"dataset": "camvid", "seed": seed})
            runs[-1][a] = Run(planned, RunRecord({}, result, {}), ROOT)

    def judged(runs):
        return SimpleNamespace(verdict=lambda one, _, other: verdict.get(other, verdict["else"]))

    monkeypatch.setattr(chapter, "Judged", judged)
    return chapter.study_sentence(runs, low, high)


def test_chapter_says_what_the_study_can_separate(monkeypatch):
    assert chapter.study_sentence([], 0, 1) == "The five are not complete for any seed yet."
    # Validation and test choose different exponents.
    one = {0.0: (0.40, 0.30), 0.25: (0.42, 0.35), 0.5: (0.44, 0.39), 1.0: (0.41, 0.34)}
    one |= {0.75: (0.47, 0.36)}
    told = sentence([one], {"0.5": "lower", "else": "not distinguishable"}, monkeypatch)
    for part in (
        "With one seed, the validation images choose a = 0.75, inside that range",
        "on the test images a = 0.5, below it, is the best",
        "a = 0.75 is not distinguishable from 0, 0.25 and 1; lower than 0.5",
        "it separates no exponents",
    ):
        assert part in told
    two = {a: (0.5 - a / 10, 0.4 - a / 10) for a in chapter.EXPONENTS}
    told = sentence([two, two], {"else": "higher"}, monkeypatch)
    assert "With 2 seeds" in told and "a = 0, below that range" in told
    assert "it is the best as well" in told and "set apart from the other four" in told
    told = sentence([two, two], {"0.25": "not distinguishable", "else": "higher"}, monkeypatch)
    assert "does not single out one exponent" in told


def test_runs_of_the_exponents_are_of_complete_seeds(tmp_path):
    small = ROOT / "study" / "grids" / "small"
    planned = load_grid(small / "components.yaml") + load_grid(small / "table1.yaml")
    for p in planned:
        seed, camvid = p.settings["seed"], p.settings["dataset"] == "camvid"
        one = p.method == "1/S^0.25, weights"
        # Of seed 1 an exponent is missing; of seed 0 a = 0 is cross-entropy.
        if camvid and (seed == 0 or (seed == 1 and not one)) and p.method != "1/S^0, weights":
            fake_record(p, tmp_path)
    found = chapter.exponent_runs(tmp_path)
    (by,) = found["weights"]
    assert list(sorted(by)) == list(chapter.EXPONENTS) and by[0.0].planned.settings["loss"] == "ce"
    for a, run in by.items():
        assert run.method == f"{a:g}" and run.seed == 0
        params = run.planned.settings["loss_params"]
        assert a == 0 or (params["size_exponent"], params["normalize"]) == (a, "weights")
    assert len(found["images"]) == 2
    means = chapter.mean_scores(found["images"], "test")
    expected = np.mean([seed[0.5].score("miou") for seed in found["images"]])
    assert means[0.5] == pytest.approx(100 * expected)


def test_homogenising_exponent_is_the_own_one_and_alpha():
    recorded = json.loads(RECORD.read_text())["datasets"]
    runs = {n: {m: run["states"] for m, run in e["methods"].items()} for n, e in recorded.items()}
    wanted = chapter.homogenising_exponents(runs, recorded)
    for own, method in ((0, "CE"), (1, "1/S"), (1, "PAT")):
        alpha = runs["camvid"][method]["0"]["logits"]["exponent"][0]
        assert wanted["camvid", method, "start", "logits"] == pytest.approx(own + alpha)
    assert len(wanted) == sum(len(methods) for methods in runs.values()) * 3 * 4


def test_words_on_the_long_runs_follow_the_record():
    def summary(exponent, ratio, low=0, high=1):
        return {"100": {"network": {"exponent": [exponent, low, high], "ratio": ratio}}}

    equal = {"CE": summary(0.5, 9.0), "PAT": summary(-0.1, 4.0)}
    unequal = {"CE": summary(0.4, 3.0), "PAT": summary(0.1, 6.0)}
    said = chapter.long_words({"A": equal, "B": unequal})
    ends = "[0.00, 1.00]"
    assert f"(CE and PAT: 0.50 {ends} and −0.10 {ends} on A; 0.40 " in said["long_verdict"]
    assert "9.0 and 4.0 on A; 3.0 and 6.0 on B" in said["long_verdict"]
    assert "nearer to 0 than that of CE on A and B" in said["long_verdict"]
    assert "its interval leaves out 0 on no data set (CE" in said["long_verdict"]
    further = {"CE": summary(0.1, 3.0), "PAT": summary(-0.3, 6.0, -0.4, -0.2)}
    assert "CE on A, and its" in chapter.long_words({"A": equal, "C": further})["long_verdict"]
    said = chapter.long_words({"C": further})["long_verdict"]
    assert "that of CE on no data set, and its interval leaves out 0 on C (CE" in said
    assert "none was measured" in chapter.long_words({"A": {"CE": equal["CE"]}})["long_verdict"]


TINY = dict(image_size=[32, 48], model="attention_unet", model_params={"width": 2}, epochs=1)
LIVE = ["gradients-06", "gradients-07", "gradients-09"]


def test_chapter_with_other_parameters():
    page = Chapter("gradients", LIVE, **TINY, batch_size=60, num_images=5, temperature=0.5)
    for _ in range(2):  # again in the same kernel
        html = "".join(value.data for value in page.shown if hasattr(value, "data"))
        rows = re.findall(r"<td>([^<]+)</td>\s*<td>(\d)</td>", html)
        assert rows == [(m, e) for m in ("CE", "1/S", "PAT") for e in ("0", "1")]
        page.run(LIVE)


def test_chapter_on_a_finished_run(tmp_path):
    run = config(tmp_path, loss="focal", epochs=1)
    train(run, progress=False)
    page = Chapter("gradients", LIVE, run_folders=[run.output_dir], num_images=4)
    assert list(page.space["live"]) == ["run"] and list(page.space["live"]["run"]) == [0, 1]


def test_chapter_refuses_an_unknown_parameter():
    with pytest.raises(ValueError, match="has no parameter 'epoch' .did you mean 'epochs'"):
        Chapter("gradients", only=[], epoch=1)
