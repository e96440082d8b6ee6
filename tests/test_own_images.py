"""A comparison on one's own images: what is refused, planned, chosen, and left behind."""

import html
import json
import multiprocessing
import os
import re
import shutil
import signal
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import papermill
import pytest
import torch
import yaml
from chapters import NOTEBOOKS
from markdown_it import MarkdownIt
from PIL import Image

import patlib.own_images.comparison
from conftest import write_image
from patlib import Predictor, RunConfig, RunRecord, cli, own_images
from patlib.data import build_dataset, load_arrays
from patlib.losses import LOSSES
from patlib.metrics import count_per_image
from patlib.own_images.comparison import Trained, load_trained, seeds_needed
from patlib.own_images.folder import FINDING, _times, kind_of_tail, near_duplicates
from patlib.own_images.plan import (
    REPORT_SECONDS,
    SEEDS,
    STARTS,
    Plan,
    check_losses,
    fit,
    measure,
    save_plan,
)
from patlib.own_images.report import EXPLAINED
from patlib.study.grids import load_grid, load_records
from patlib.study.statistics import Difference, interval, mean_iou
from patlib.training import Learner

ROOT = Path(__file__).parents[1]
NAMES = ["ground", "leaf", "<b>pole & 'post'</b>"]
SIZE = (32, 48)
SPLITS = ("validation", "test")


def make_folder(root, images=20, seed=0):
    """Images and masks of three classes; the last one is small, and in half of the images."""
    rng = np.random.default_rng(seed)
    for i in range(images):
        mask = np.zeros(SIZE, np.uint8)
        mask[8 : 16 + i % 8, 10:30] = 1
        if i % 2:
            mask[20:24, 36:40] = 2
        image = np.array([[90, 60, 20], [20, 160, 30], [200, 200, 255]], np.uint8)[mask]
        noise = rng.integers(0, 50, image.shape, dtype=np.uint8)
        write_image(root / "images" / f"{i:02d}.png", image + noise)
        write_image(root / "masks" / f"{i:02d}.png", mask)
    content = {"classes": NAMES, "void": [255], "image_size": list(SIZE)}
    (root / "classes.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return root


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "mine")


# -- survey ---------------------------------------------------------------------------------------


def test_everything_that_does_not_fit_is_named_by_file_at_once(folder):
    (folder / "images" / "00.png").write_bytes(b"broken")
    (folder / "masks" / "01.png").unlink()
    (folder / "images" / "02.png").unlink()
    Image.open(folder / "images" / "03.png").resize((40, 40)).save(folder / "images" / "03.png")
    wrong = np.asarray(Image.open(folder / "masks" / "04.png")).copy()
    wrong[0, 0] = 7
    write_image(folder / "masks" / "04.png", wrong)
    Image.fromarray(np.full(SIZE, 300, np.uint16)).save(folder / "images" / "05.png")
    with pytest.raises(ValueError, match="6 files do not fit") as refused:
        own_images.survey(folder)
    lines = dict(re.findall(r"^  (\S+): (.*)$", str(refused.value), re.MULTILINE))
    assert lines["images/00.png"].startswith("the image file cannot be read")
    assert lines["images/01.png"] == "there is no mask (PNG) of this name"
    assert lines["masks/02.png"] == "there is no image of this name"
    assert lines["masks/03.png"] == "the mask has 32x48 pixels (H x W), the image 40x40"
    assert lines["masks/04.png"] == "it holds [7], which classes.yaml does not have"
    assert lines["images/05.png"].startswith("an image must have 8 bits a channel")
    assert len(lines) == 6


def test_a_messy_but_readable_folder_is_described(folder):
    """Palettes, two sizes, folders, names in unicode, a class in one image only."""
    palette = np.random.default_rng(0).integers(0, 256, 768).tolist()
    for i in range(20):
        mask = np.asarray(Image.open(folder / "masks" / f"{i:02d}.png")).copy()
        mask[mask == 2] = 0
        if i == 3:
            mask[0, :5] = 2
        stored = Image.fromarray(mask)
        stored.putpalette(palette)
        image = Image.open(folder / "images" / f"{i:02d}.png")
        if i % 3 == 0:
            image, stored = (x.resize((96, 64), Image.Resampling.NEAREST) for x in (image, stored))
        for kind, content in (("images", image), ("masks", stored)):
            (folder / kind / f"{i:02d}.png").unlink()
            place = folder / kind / f"tag {i % 2}" / f"Blätter ß {i}.png"
            place.parent.mkdir(exist_ok=True)
            content.save(place)
    found = own_images.survey(folder)
    assert found.image_size == SIZE and found.drafted is None and not found.problems
    assert found.original_sizes == {(64, 96): 7, (32, 48): 13}
    assert {split: len(sizes) for split, sizes in found.splits.items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }
    text = "\n".join(own_images.notes(found))
    assert 'In a single image: "<b>pole' in text and "2 sizes" in text
    assert re.search('No (test|validation|train) image holds "<b>pole', text)


def test_where_there_is_no_classes_yaml_a_draft_is_written_and_read(folder):
    (folder / "classes.yaml").unlink()
    found = own_images.survey(folder)
    assert found.drafted == (folder / "classes.yaml").read_text()
    assert found.class_names == ("class_0", "class_1", "class_2")
    assert found.image_size == (32, 64)  # multiples of 32
    again = own_images.survey(folder)
    assert again.drafted is None and again.class_names == found.class_names


def test_a_draft_of_masks_in_colours_reads_a_palette_as_its_colours(folder):
    (folder / "classes.yaml").unlink()
    table = bytes([10, 20, 30, 200, 100, 0, 255, 255, 255] + [0] * 759)
    for i, file in enumerate(sorted((folder / "masks").iterdir())):
        mask = Image.open(file)
        mask.putpalette(table)
        mask.convert("P" if i == 0 else "RGB").save(file)
    found = own_images.survey(folder)
    assert found.class_names == ("class_0a141e", "class_c86400", "class_ffffff")
    write_image(folder / "masks" / "00.png", np.full(SIZE, 9, np.uint8))
    (folder / "classes.yaml").unlink()
    for file in sorted((folder / "masks").iterdir())[:15]:
        write_image(file, np.full(SIZE, 1, np.uint8))
    with pytest.raises(ValueError, match="5 files do not fit(.|\n)*15.png: it holds colours"):
        own_images.survey(folder)


def test_counts_of_the_survey_are_those_of_the_masks(folder):
    found = own_images.survey(folder)
    total = sum(sizes.sum(0) for sizes in found.splits.values())
    masks = [np.asarray(Image.open(file)) for file in (folder / "masks").iterdir()]
    assert total.tolist() == np.bincount(np.ravel(masks), minlength=3).tolist()


def test_what_a_folder_lacks_is_said(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"has no folder images/.*\n.*Expected in"):
        own_images.survey(tmp_path)
    for file in folder.glob("*/*.png"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="has no images"):
        own_images.survey(folder)


def test_near_duplicates_are_the_same_image_stored_anew():
    rng = np.random.default_rng(0)
    train, test = rng.random((5, 256)), rng.random((3, 256))
    test[1] = 0.5 * train[3] + 20 + 0.001 * rng.random(256)  # darker, and with noise
    names = {"train": list("abcde"), "validation": ["v"], "test": list("xyz")}
    rows = dict(zip("abcdexyzv", [*train, *test, rng.random(256)], strict=True))
    assert near_duplicates(names, rows) == [("y", "d")]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([[900, 1]] * 10, "small where they are"),  # everywhere, and small
        ([[900, 0]] * 19 + [[0, 900]], "in few images"),  # as large, but once
        ([[900, 500]] * 10, "A short tail"),
    ],
)
def test_the_kind_of_tail(sizes, said):
    found = own_images.Survey(Path(), class_names=("common", "rare"))
    found.splits["train"] = np.array(sizes)
    assert said in kind_of_tail(found)


def test_what_is_said_of_the_study_is_in_its_records():
    """On each drawn data set, three losses beat cross-entropy in the tail; BMS does not on all."""
    planned = load_grid(ROOT / "study" / "grids" / "small" / "size_or_presence.yaml")
    records = load_records(planned, ROOT / "study" / "records" / "runs")
    tails = defaultdict(dict)
    for run in planned:
        if run.name in records:
            key = run.settings["data_params"]["rare_size"], run.settings["seed"]
            tails[key][run.method] = records[run.name].result["test"]["tail"]
    compared = {key: found for key, found in tails.items() if "CE" in found}
    assert {size for size, _ in compared} == {12.0, 120.0, 480.0}
    for found in compared.values():
        for method in ("PAT", "1/√S", "CB"):
            assert method not in found or found[method] > found["CE"]
    lower = [of["BMS"] < of["CE"] for of in compared.values() if "BMS" in of]
    assert 0 < sum(lower) < len(lower) / 2
    assert "PAT, 1/√S and CB raised" in FINDING and "BMS not always" in FINDING


# -- plan -----------------------------------------------------------------------------------------


def test_what_fits_is_the_most_seeds_with_enough_steps():
    """No other number of epochs ends nearer to the time, but for those over it by over 5 %."""
    for seconds in (5, 20, 60, 600, 6000, 60_000):
        for steps in (3, 40, 400):
            number, epochs = fit(seconds, 2.0, 1.5, steps)
            ends = {e: number * (2 + 1.5 * e) for e in range(1, 201)}
            allowed = {e: abs(end - seconds) for e, end in ends.items() if end <= 1.05 * seconds}
            if epochs:
                assert allowed[epochs] == min(allowed.values())
            else:
                assert not allowed
            assert epochs * steps >= dict(SEEDS)[number] or epochs == 200
    assert fit(1, 2.0, 1.5, 10) == (1, 0)
    assert fit(60_000, 2.0, 1.5, 10) == (5, 200)
    assert fit(100, 2.0, 1.5, 10, seeds=4) == (4, 15)
    assert fit(100, 0.0, 26.0, 10, seeds=1) == (1, 4)  # 104 seconds are nearer than 78
    assert fit(100, 0.0, 18.0, 10, seeds=1) == (1, 5)  # 90, because 108 are too many


def test_losses_by_name_and_by_settings():
    assert list(check_losses(None)) == list(own_images.CANDIDATES)
    of_names = check_losses(["ce", "lovasz", "CE + Jaccard"])
    assert [m["loss"] for m in of_names.values()] == ["ce", "lovasz", "mix"]
    assert [*of_names][0::2] == ["CE", "CE + Jaccard"]
    given = {"a": {"loss": "pat", "loss_params": {"temperature": 5.0}}, "b": {"loss": "ce"}}
    assert check_losses(given) == given
    for wrong, message in {
        "ce": "losses must be names",
        ("ce",): "two or more",
        ("ce", "cee"): "did you mean 'ce'",
    }.items():
        with pytest.raises(ValueError, match=message):
            check_losses(list(wrong) if isinstance(wrong, tuple) else wrong)
    with pytest.raises(ValueError, match=r"losses\['a'\] must be settings with .*epochs"):
        check_losses({"a": {"loss": "ce", "epochs": 3}, "b": {"loss": "ce"}})


def test_a_budget_that_is_too_small_says_what_is_needed(folder, tmp_path, monkeypatch):
    speed = {"step": 10.0, "image": 0.1, "scored_image": 0.1, "save": 0.0, "label": 5.0}
    speeds = dict.fromkeys(METHODS, speed)
    monkeypatch.setattr("patlib.own_images.plan.measure", lambda *args: speeds)
    settings = plan_settings(folder)
    with pytest.raises(ValueError, match=r"must be at least [\d.]+ for .* 2 losses") as e:
        own_images.make_plan(METHODS, settings, tmp_path / "out", 0.5)
    least = float(re.search(r"at least ([\d.]+)", str(e.value))[1])
    plan = own_images.make_plan(METHODS, settings, tmp_path / "out", least + 0.1)
    assert plan.settings["epochs"] == 1 and plan.all_seconds <= 1.05 * 60 * (least + 0.1)
    other = tmp_path / "other"  # an epoch takes 40 seconds, and there is time for one and a half
    plan = own_images.make_plan(METHODS, settings, other, least + 0.3, imports=5.0)
    assert plan.settings["epochs"] == 1
    other_seconds = STARTS * 5.0 + REPORT_SECONDS + 2 * 5.0  # of 2 test images to be labelled
    assert plan.other_seconds == pytest.approx(other_seconds, abs=3)
    assert plan.duration.endswith(
        f"(the budget is {least + 0.3:.1f}; epochs are whole, and 200 at most)"
    )


METHODS = {"CE": {"loss": "ce"}, "BMS": {"loss": "bms"}}


def plan_settings(folder):
    return own_images.shared_settings(
        folder, SIZE, 16, "segnet", {"width": 4, "stages": 2}, device="cpu"
    )


def test_measuring_leaves_nothing_and_measures_each_part(folder, tmp_path):
    plan = own_images.make_plan(METHODS, plan_settings(folder), tmp_path / "out", 0.6, seeds=2)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["plan.json"]
    assert plan.seeds == [0, 1] and plan.settings["epochs"] >= 1
    assert 0 < sum(map(plan.run_seconds, METHODS)) < plan.all_seconds <= 1.05 * 36
    assert f"about {plan.all_seconds / 60:.1f} minutes in all" == plan.duration
    # Asked for again it is the same, whatever the budget; for others it is refused.
    settings = plan_settings(folder)
    assert own_images.make_plan(METHODS, settings, tmp_path / "out", 99) == plan
    with pytest.raises(ValueError, match="holds a comparison of other methods"):
        own_images.make_plan({**METHODS, "PAT": {"loss": "pat"}}, settings, tmp_path / "out", 99)
    write_image(folder / "masks" / "00.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(ValueError, match="holds a comparison of other data"):
        own_images.make_plan(METHODS, settings, tmp_path / "out", 99)


def test_measured_steps_are_those_of_training(folder, tmp_path, monkeypatch):
    arrays = {
        split: load_arrays(build_dataset("folder", folder, split, SIZE))
        for split in ("train", "validation", "test")
    }
    shown = []
    original = Learner.train_epoch
    monkeypatch.setattr(
        Learner,
        "train_epoch",
        lambda self, epoch: shown.append(len(self.images)) or original(self, epoch),
    )
    config = RunConfig(**{**plan_settings(folder), "batch_size": 4})
    speeds = measure({"CE": config, "PAT": replace(config, loss="pat")}, arrays, tmp_path, 1e-6)
    assert shown == [4, 4, 4] and not list(tmp_path.glob(".*"))
    assert speeds.keys() == {"CE", "PAT"}
    assert all(seconds > 0 for speed in speeds.values() for seconds in speed.values())


# -- comparison -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison: its survey, plan and folder, and what it found."""
    base = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATLIB_CACHE", str(base / "cache"))
        folder = make_folder(base / "mine")
        found = own_images.survey(folder)
        plan = small_plan(folder)
        out = base / "out"
        return found, plan, out, finish(found, plan, out)


def small_plan(folder):
    settings = {**plan_settings(folder), "epochs": 6, "learning_rate": 0.01}
    seconds = dict.fromkeys(METHODS, 1.0)
    return Plan(METHODS, settings, [0, 1], {}, 2, seconds, seconds, 600.0, 20.0)


def finish(found, plan, out):
    plan = own_images.train_all(plan, out, say=lambda text: None, progress=False)
    result = own_images.compare(plan, load_trained(plan, out), found.class_names)
    own_images.keep_best(result, out)
    own_images.write_report(found, result, out)
    return result


def test_shift_and_loss_are_chosen_on_validation_images_alone(compared):
    """By other means: label the validation images with each network under each shift."""
    found, plan, out, result = compared
    dataset = build_dataset("folder", found.root, "validation", SIZE)
    files = [sample.image for sample in dataset.samples]
    truth = np.stack([dataset.arrays(i)[1] for i in range(len(dataset))])
    best = {}
    for method in METHODS:
        grid = result.runs[method][0].shifts
        scores = []
        for shift in grid:
            miou = []
            for seed in plan.seeds:
                run = plan.config(method, seed, out).output_dir
                labels = np.stack(list(Predictor(run, "cpu", prior_shift=shift)(files)))
                counts = count_per_image(torch.from_numpy(labels), torch.from_numpy(truth), 3)
                miou.append(mean_iou(counts.numpy().sum(0)))
            scores.append(np.mean(miou))
        chosen = grid.index(result.shifts[method])
        assert scores[chosen] == pytest.approx(max(scores), abs=1e-3)
        best[method] = scores[chosen]
    assert best[result.best] == pytest.approx(max(best.values()), abs=1e-3)
    kinds = {kind for shift in result.runs["BMS"][0].shifts for kind in shift}
    assert kinds == {"tau", "kappa"}


def test_differences_are_those_of_the_scores_of_the_table(compared):
    _, _, out, result = compared
    table = own_images.score_table(result)
    rows = {method: part.set_index("seed") for method, part in table.groupby("method")}
    for metric in ("miou", "head", "tail"):
        (difference,) = result.differences[metric]
        scores = [rows[m][f"test_{metric}"] for m in (difference.method, difference.reference)]
        assert difference.by_seed == pytest.approx((scores[0] - scores[1]).to_dict())
        assert difference.low <= difference.mean <= difference.high
    assert any(result.differences["miou"][0].by_seed.values())
    stored = (out / "scores.csv").read_text().splitlines()
    assert len(stored) == 1 + 4 and stored[0].startswith("method,seed,shift,strength")


def test_the_network_to_use_and_the_label_maps_are_those_of_the_choice(compared):
    found, _, out, result = compared
    names = {path.name for path in (out / "best").iterdir()}
    assert names == {"record.json", "last.ckpt", "log.csv", "test_images.npz", "chosen.json"}
    chosen = json.loads((out / "best" / "chosen.json").read_text())
    assert chosen == {"method": result.best, "prior_shift": result.shifts[result.best]}
    record = json.loads((out / "best" / "record.json").read_text())
    assert record["config"]["loss"] == METHODS[result.best]["loss"]
    maps = sorted((out / "labels").glob("*.png"))
    assert len(maps) == 2
    predictor = Predictor(out / "best", "cpu", prior_shift=result.shifts[result.best])
    for path in maps:
        (expected,) = predictor([found.root / "images" / path.name])
        np.testing.assert_array_equal(Image.open(path), expected)


def test_the_report_is_one_file_and_shows_names_as_text(compared):
    _, _, out, result = compared
    page = (out / "report.html").read_text()
    assert "<b>pole" not in page and "&lt;b&gt;pole &amp;" in page
    assert page.count("data:image/png;base64,") == 6
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert f"<p>{html.escape(own_images.verdict(result)[0])}</p>" in page
    assert "CE: cross-entropy, the usual loss; BMS: balanced softmax" in page
    assert EXPLAINED.keys() == LOSSES.keys()
    assert len(page) < 3_000_000


# Imports patlib once; the processes that are killed are forks of it.
KILLED = multiprocessing.get_context("forkserver")
KILLED.set_forkserver_preload(["patlib.own_images"])


def compare_and_die(folder, out, cache, call):
    """A comparison that ends by SIGKILL, before which nothing is cleaned up."""
    torch.set_num_threads(1)
    os.environ["PATLIB_CACHE"] = cache
    original, calls = patlib.training.save_checkpoint, []

    def deadly(path, content):
        original(path, content)
        calls.append(path)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    patlib.training.save_checkpoint = deadly
    finish(own_images.survey(folder), small_plan(folder), out)


@pytest.mark.parametrize("call", [2, 15])
def test_killed_and_started_again_it_ends_with_the_same_report(
    compared, tmp_path, monkeypatch, call
):
    """Killed after some epochs of the first run, or of one in the second seed."""
    found, plan, out, _ = compared
    arguments = (found.root, tmp_path / "out", str(tmp_path / "cache"), call)
    killed = KILLED.Process(target=compare_and_die, args=arguments)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    saved, original = [], patlib.training.save_checkpoint
    monkeypatch.setattr(
        patlib.training,
        "save_checkpoint",
        lambda path, content: saved.append(path) or original(path, content),
    )
    finish(found, plan, tmp_path / "out")
    assert call + len(saved) == 2 * 2 * 6  # no epoch was trained twice
    for name in ("report.html", "scores.csv"):
        expected = (out / name).read_text().replace(str(out), str(tmp_path / "out"))
        assert (tmp_path / "out" / name).read_text() == expected
    same = [np.load(path / "best" / "test_images.npz") for path in (out, tmp_path / "out")]
    np.testing.assert_array_equal(*(file["labels"] for file in same))


@pytest.mark.parametrize(
    ("slowness", "seeds", "epochs"),
    [
        (1.02, [0, 1], 6),  # within 8 % of the time: as planned
        (0.5, [0, 1], 12),  # (27 - 2 * 0.5) / 2 = 13 seconds a seed, of 2 * 0.5 * (1 + epochs)
        (2.0, [0, 1], 2),  # (27 - 2 * 2) / 2 = 11.5 seconds a seed, of 2 * 2 * (1 + epochs)
    ],
)
def test_epochs_are_planned_anew_if_the_first_ones_are_not_as_measured(
    compared, tmp_path, monkeypatch, slowness, seeds, epochs
):
    """27 seconds for 2 seeds of 2 losses with 6 epochs, each of a second, and a second beside."""
    plan = replace(compared[1], training_seconds=27.0)
    now = [0.0]
    original = Learner.train_epoch

    def train_epoch(self, *arguments):
        now[0] += slowness
        return original(self, *arguments)

    monkeypatch.setattr(Learner, "train_epoch", train_epoch)
    comparison = patlib.own_images.comparison
    monkeypatch.setattr(comparison, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(comparison, "WATCHED_SECONDS", 1.5 * slowness)  # two epochs
    said = []
    kept = own_images.train_all(plan, tmp_path, say=said.append, progress=False)
    changed = epochs != 6
    assert (kept.seeds, kept.settings["epochs"], kept.revised) == (seeds, epochs, changed)
    assert any(f"{slowness:.2f} times as long" in line for line in said) == changed
    runs = load_trained(kept, tmp_path)
    assert {run.record.config["epochs"] for run in runs} == {epochs} and len(runs) == 4
    if changed:  # started again, it does not look again
        assert kept.training_seconds == pytest.approx(27 - 2 * slowness)  # two epochs are lost
        again = Plan(**json.loads((tmp_path / "plan.json").read_text()))
        assert again == kept == own_images.train_all(again, tmp_path, say=said.append)


@pytest.mark.parametrize(
    ("seconds", "more", "seeds", "said"),
    [
        (10.0, True, [0, 1, 2], ""),  # as planned: 3 seeds, 2 runs each, 60 seconds
        (21.0, True, [0], "2 seed(s) left out"),
        (13.0, True, [0, 1], "1 seed(s) left out"),
        (10.4, True, [0, 1, 2], ""),  # 2 seconds late are nearer than 18 early
        (7.0, True, [0, 1, 2, 3], "one more seed"),
        (7.0, False, [0, 1, 2], ""),
        (1.0, True, [0, 1, 2, 3, 4], "one more seed"),
    ],
)
def test_seeds_are_left_out_or_added_as_the_time_is(
    compared, tmp_path, monkeypatch, seconds, more, seeds, said
):
    _, plan, _, _ = compared
    plan = replace(plan, seeds=[0, 1, 2], training_seconds=60.0, more_seeds=more, revised=True)
    record = RunRecord({}, {}, {"seconds": {"all": seconds}})
    monkeypatch.setattr(patlib.own_images.comparison, "train", lambda *a, **k: record)
    lines = []
    kept = own_images.train_all(plan, tmp_path, say=lines.append)
    assert kept.seeds == seeds and said in lines[-1 if said != "one more seed" else 6]
    if len(seeds) != 3:  # started again, it does the same
        again = Plan(**json.loads((tmp_path / "plan.json").read_text()))
        assert again == kept == own_images.train_all(again, tmp_path, say=lines.append)


def made_up(method, better):
    """A run of 1 class and a half: with good labels on one split, under shift 1 on that split."""
    good, fair, bad = ([[[90, 0], [100, 0], [100, 0]]] * 4, [[[70, 0], [100, 0], [100, 0]]] * 4,
                       [[[10, 0], [100, 0], [100, 0]]] * 4)  # fmt: skip
    counts = {split: np.array([fair, good if split == better else bad]) for split in SPLITS}
    result = {"class_counts": [5, 5], "class_images": [2, 2]}
    record = RunRecord({}, result, {})
    shifts = [{"tau": 0.0}, {"tau": 1.0}]
    return Trained(method, 0, Path(), record, shifts, counts)


def test_test_images_choose_nothing(compared):
    """The loss that is good on test images is not chosen; its shift stays where validation is."""
    plan = replace(compared[1], seeds=[0])
    runs = [made_up("CE", "test"), made_up("BMS", "validation")]
    result = own_images.compare(plan, runs, ["a", "b"])
    assert result.best == "BMS"
    assert result.shifts == {"CE": {"tau": 0.0}, "BMS": {"tau": 1.0}}


def with_differences(result, verdicts, seeds=(0, 1, 2)):
    """A comparison with the differences that are given: method -> (mean, half width)."""

    def difference(method, mean, half):
        by_seed = {s: mean + 0.001 * (s - 1) for s in seeds}
        return Difference(method, result.best, by_seed, mean - half, mean + half)

    made = [difference(m, *v) for m, v in verdicts.items()]
    plan = replace(result.plan, seeds=list(seeds))
    return replace(result, plan=plan, differences={"miou": made, "tail": []})


def test_no_winner_is_called_that_is_not_distinguishable(compared, monkeypatch):
    *_, result = compared
    said = own_images.verdict(with_differences(result, {"A": (-0.05, 0.01), "B": (-0.02, 0.03)}))
    text = " ".join(said)
    assert said[0].startswith(f"No clear winner. {result.best} ")
    assert (
        "is higher than that of A." in text and "In mIoU it cannot be told apart from B: if" in text
    )
    # The seeds agree to 0.1 points: what is open is due to the images.
    assert "Even 20 seeds would not tell it from B: treat them as equal, or compare on" in text
    tied = with_differences(result, {"A": (0.001, 0.03)})
    tail = replace(tied.differences["miou"][0], by_seed={0: -0.1, 1: -0.1}, low=-0.12, high=-0.08)
    text = " ".join(
        own_images.verdict(replace(tied, differences={**tied.differences, "tail": [tail]}))
    )
    assert "which differ from it by so many points of tail IoU: A \u221210.0." in text
    said = own_images.verdict(with_differences(result, {"A": (-0.05, 0.01)}))
    assert said[0].startswith(f"Take {result.best}") and "higher than that of A" in said[1]
    text = " ".join(own_images.verdict(with_differences(result, {"A": (0.05, 0.01)})))
    assert text.startswith("No clear winner. ") and "On the test images A did better" in text
    for seeds in ([0], [0, 1]):
        said = own_images.verdict(with_differences(result, {"A": (-0.05, 0.06)}, seeds=seeds))
        assert said[0].startswith("Not decided. " if len(seeds) == 1 else "No clear winner. ")
        assert "higher than" not in " ".join(said)
        assert said[-1] == "Then take 3 seeds or more."  # after longer runs
    monkeypatch.setattr(patlib.own_images.comparison, "_short_runs", lambda _: [])
    for seeds in ([0], [0, 1]):
        said = own_images.verdict(with_differences(result, {"A": (-0.05, 0.06)}, seeds=seeds))
        # A run of each of two methods takes 7 seconds by the plan.
        minutes = {1: 0.5, 2: 0.2}[len(seeds)]
        how = f"the same command with --seeds 3 adds them, in about {minutes} minutes."
        assert said[-1] == f"Take 3 seeds or more: {how}"


def test_with_one_seed_the_tail_is_named_beside_miou(compared):
    *_, result = compared
    one = with_differences(result, {"A": (-0.05, 0.06), "B": (0.02, 0.06)}, seeds=[0])
    assert "Tail IoU" not in " ".join(own_images.verdict(one))  # there is no score of it
    tail = [Difference("A", result.best, {0: 0.031}, 0.0, 0.1),
            Difference("B", result.best, {0: float("nan")}, 0.0, 0.1)]  # fmt: skip
    said = own_images.verdict(replace(one, differences={**one.differences, "tail": tail}))
    assert said[1].startswith(f"Test mIoU minus that of {result.best}, in points: A")
    assert said[2] == f"Tail IoU minus that of {result.best}, in points: A +3.1."
    several = with_differences(result, {"A": (-0.05, 0.06)})
    assert "minus that of" not in " ".join(own_images.verdict(several))


def test_texts_are_shown_as_text_in_markdown_and_options_as_code():
    texts = ["'<b>pole_1 & `post`*'", "[a](b) {glue}`c` $x$ ~~d~~ #e \\ a--b"]
    texts += ["the same --seeds 3 --out, or --image_size"]
    options = []
    shown = MarkdownIt("gfm-like").parse(own_images.as_markdown(texts))[1::3]
    for inline, text in zip(shown, texts, strict=True):
        assert "".join(token.content for token in inline.children) == text
        options += [token.content for token in inline.children if token.type == "code_inline"]
        kinds = {token.type for token in inline.children}
        assert kinds <= {"text", "text_special", "code_inline"}
    assert options == ["--seeds 3", "--out", "--image_size"]


def test_short_runs_are_named_before_seeds(compared):
    """6 epochs of 2 steps; validation mIoU rises from epoch 4 to 6 by the mean of the curves."""
    *_, result = compared
    said = own_images.verdict(with_differences(result, {"A": (-0.05, 0.06)}))
    curves = [run.record.result["curves"]["validation_miou"]
              for runs in result.runs.values() for run in runs]  # fmt: skip
    rise = 100 * np.mean([curve[5] - curve[3] for curve in curves])
    still = f", and validation mIoU rose by {rise:.1f} points in the last third" if rise > 0 else ""
    (short,) = (text for text in said if text.startswith("The runs are short"))
    assert short.startswith(f"The runs are short: 12 steps each{still}. In longer ones")
    assert said.index(short) < len(said) - 1


def test_a_tail_without_test_images_has_no_score_and_no_figure(compared):
    found, _, _, result = compared
    gone = {method: [replace(run, counts={**run.counts, "test": run.counts["test"].copy()})
                     for run in runs] for method, runs in result.runs.items()}  # fmt: skip
    for runs in gone.values():
        for run in runs:
            run.counts["test"][..., result.groups["tail"]] = 0
    bare = own_images.compare(result.plan, [r for runs in gone.values() for r in runs], NAMES)
    assert "The tail has no score: no test image holds one of its classes." in " ".join(
        own_images.verdict(bare)
    )
    assert set(own_images.summary_table(bare)["test tail (%)"]) == {"no test image"}
    assert "trade-off" not in own_images.make_figures(found, bare)
    plt.close("all")


def test_seeds_that_are_needed_are_those_at_which_the_interval_excludes_0():
    """By simulation of the formula, with seeds that are appended; exact at the number found."""
    values = [-0.01, -0.03, -0.002]
    low, high = interval(values, 1e-6)
    needed = seeds_needed(Difference("A", "B", dict(enumerate(values)), low, high))
    assert low < 0 < high and 3 < needed <= 20
    mean, spread = np.mean(values), np.std(values, ddof=1)
    for number in (needed - 1, needed):
        drawn = np.linspace(-1, 1, number)
        drawn = mean + spread * (drawn - drawn.mean()) / drawn.std(ddof=1)
        low, high = interval(drawn, 1e-6)
        assert (low > 0 or high < 0) == (number == needed)
    low, high = interval(values, 1e-4)  # 2 points of the images alone
    assert seeds_needed(Difference("A", "B", dict(enumerate(values)), low, high)) is None


def test_seeds_are_added_to_a_comparison_that_is_there(compared, tmp_path):
    found, plan, out, _ = compared
    shutil.copytree(out, tmp_path / "out")
    settings = {k: v for k, v in plan.settings.items() if k != "epochs"}
    data = {split: load_arrays(build_dataset("folder", found.root, split, SIZE)).fingerprint
            for split in ("train", *SPLITS)}  # fmt: skip
    save_plan(replace(plan, data=data), tmp_path / "out")
    for seeds, kept in {None: [0, 1], 2: [0, 1], 1: [0], 8: [*range(8)], 3: [0, 1, 2]}.items():
        again = own_images.make_plan(METHODS, settings, tmp_path / "out", 10, seeds)
        assert again.seeds == kept and again.settings == plan.settings
    other = {**settings, "image_size": [64, 48]}
    with pytest.raises(ValueError, match=r"\(image_size is \[32, 48\] there, \[64, 48\] here\)"):
        own_images.make_plan(METHODS, other, tmp_path / "out", 10, 3)
    said = []
    done = own_images.train_all(again, tmp_path / "out", say=said.append, progress=False)
    assert done.seeds == [0, 1, 2] and said[0].startswith("4 of 6 runs are there: CE, seed 0; BMS")
    assert [line.split(";")[0] for line in said[1:]] == [
        "run 5 of 6: CE, seed 2",
        "run 6 of 6: BMS, seed 2",
    ]


def test_factors_are_written_with_two_digits():
    factors = {1.26: "1.3", 9.96: "10.0", 17.4: "17", 94.9: "95", 123.0: "120", 1912.0: "1,900"}
    for factor, text in factors.items():
        assert _times(factor) == text


def test_a_plan_of_one_seed_says_what_it_cannot_do(compared):
    plan = replace(compared[1], seeds=[0])  # 2 runs of 7 seconds, and 20 beside
    assert "3 seeds of this length take about 1.0 minutes: --seeds 3 --budget 2" in plan.caution
    assert compared[1].caution == ""


# -- the command ----------------------------------------------------------------------------------


def test_compare_gives_the_notebook_its_parameters(folder, tmp_path, monkeypatch):
    given = {}

    def execute(notebook, out, parameters, **options):
        assert Path(notebook) == NOTEBOOKS / "own_images.ipynb"
        given.update(parameters)
        Path(out).write_text("{}")

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    command = ["compare", str(folder), "--budget", "5", "--out", str(tmp_path / "o")]
    command += ["--losses", "ce", "pat", "--image_size", "32", "48", "--seeds", "2"]
    command += ["--model", "segnet", "--model_params", "{width: 4}"]
    assert cli.main(command) == 0
    assert given["data_root"] == str(folder) and given["budget_minutes"] == 5
    assert given["losses"] == ["ce", "pat"] and given["image_size"] == [32, 48]
    known = papermill.inspect_notebook(NOTEBOOKS / "own_images.ipynb")
    assert given.keys() <= known.keys() and given["model_params"] == {"width": 4}
    given.clear()
    assert cli.main(command[:6]) == 0 and given.keys() == {
        *("data_root", "budget_minutes", "output_dir", "device"),
    }


@pytest.mark.parametrize(
    ("error", "code"), [("ValueError", 2), ("FileNotFoundError", 2), ("FloatingPointError", 1)]
)
def test_what_the_notebook_refuses_leaves_nothing(
    folder, tmp_path, monkeypatch, capsys, error, code
):
    def execute(notebook, out, parameters, **options):
        Path(out).write_text("{}")
        text = "2 files do not fit:\n  a: b\n  c: d"
        raise papermill.PapermillExecutionError(0, 1, "", error, text, [])

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    assert cli.main(["compare", str(folder), "--out", str(tmp_path / "o")]) == code
    assert capsys.readouterr().err == "patlib: 2 files do not fit:\n  a: b\n  c: d\n"
    assert (tmp_path / "o" / "comparison.ipynb").exists() == (code == 1)  # to see what failed
    assert (tmp_path / "o").exists() == (code == 1)
    (tmp_path / "there").mkdir()
    earlier = tmp_path / "there" / "comparison.ipynb"
    earlier.write_text("earlier")
    assert cli.main(["compare", str(folder), "--out", str(tmp_path / "there")]) == code
    assert (earlier.read_text() == "earlier") == (code == 2)
    assert [path.name for path in earlier.parent.iterdir()] == ["comparison.ipynb"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["nowhere"], "data must be a folder of images and masks, got 'nowhere'"),
        (["mine", "--budget", "0"], "budget must be a finite number > 0, got 0"),
    ],
)
def test_compare_refuses_before_a_kernel_starts(
    folder, tmp_path, monkeypatch, capsys, option, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(papermill, "execute_notebook", None)
    assert cli.main(["compare", *option]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "comparison").exists()
