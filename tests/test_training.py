"""Training: the record, its repeatability, and going on after an interruption."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import patlib.training
from patlib import RunConfig, RunRecord, load_model, predict, train
from patlib.data import DecodedSplit, build_dataset, count_classes, load_arrays
from patlib.losses import LOSSES
from patlib.metrics import SegmentationMetrics
from patlib.training import Images, cosine, evaluate


@pytest.fixture
def config(camvid_tree, tmp_path):
    return RunConfig(
        dataset="camvid",
        data_root=camvid_tree,
        image_size=(32, 40),
        loss_params={"temperature": 20.0},
        model_params={"width": 2},
        epochs=3,
        batch_size=2,
        device="cpu",
        output_dir=str(tmp_path / "run"),
    )


def with_fields(config, **fields):
    return dataclasses.replace(config, **fields)


def test_record_has_what_it_says(config, tmp_path, camvid_tree):
    record = train(config, progress=False)
    stored = json.loads((tmp_path / "run" / "record.json").read_text())
    assert set(stored) == {"config", "result", "provenance"}
    assert stored["config"]["loss"] == "pat" and "data_root" not in stored["config"]
    scores = {"miou", "pixel_accuracy", "mean_accuracy", "dice_error", "iou"}
    for part in ("test", "validation"):
        assert scores | {"head", "mid", "tail", "released_miou"} == set(stored["result"][part])
    assert stored["result"]["curves"]["epoch"] == [1, 2, 3]
    dataset = build_dataset("camvid", camvid_tree, "train", image_size=(32, 40))
    assert stored["result"]["class_counts"] == count_classes(dataset).tolist()
    wanted = {"seed", "commit", "versions", "device", "seconds", "date", "data"}
    assert wanted <= set(stored["provenance"])
    loaded = RunRecord.load(tmp_path / "run" / "record.json")
    np.testing.assert_equal(loaded.result["test"], record.result["test"])
    assert loaded.config == config.identity()
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["train_loss"]) for r in rows] == record.result["curves"]["train_loss"]


def test_kept_images_are_those_that_were_scored(config, tmp_path, camvid_tree):
    record = train(config, progress=False)
    with np.load(tmp_path / "run" / "test_images.npz") as kept:
        found, true, predicted = kept["counts"].sum(0)
        shown, labels = kept["shown"], kept["labels"]
        assert len(kept["counts"]) == record.provenance["num_images"]["test"] == 5
    with np.errstate(invalid="ignore"):  # a class that is nowhere
        iou = found / (true + predicted - found)
    np.testing.assert_allclose(iou, record.result["test"]["iou"])
    assert shown.tolist() == [0, 1, 2, 3, 4]  # fewer images than would be kept
    network, _ = load_model(tmp_path / "run")
    images = build_dataset("camvid", camvid_tree, "test", image_size=(32, 40))
    for i, label_map in zip(shown, labels, strict=True):
        with torch.no_grad():
            np.testing.assert_array_equal(network(images[i][0][None])[0].argmax(0), label_map)


def test_same_configuration_same_result(config, tmp_path):
    results = []
    for folder in ("a", "b"):
        record = train(with_fields(config, output_dir=str(tmp_path / folder)), progress=False)
        results.append(record.result)
    np.testing.assert_equal(*results)
    other = train(with_fields(config, seed=1, output_dir=str(tmp_path / "c")), progress=False)
    assert other.result["curves"] != results[0]["curves"]


def test_goes_on_after_an_interruption_to_the_same_result(config, tmp_path, monkeypatch):
    undisturbed = train(with_fields(config, loss="blv", loss_params={}), progress=False)
    config = with_fields(config, loss="blv", loss_params={}, output_dir=str(tmp_path / "b"))

    scored = patlib.training.evaluate
    calls = []

    def breaks_in_the_second_epoch(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scored(*args)

    monkeypatch.setattr(patlib.training, "evaluate", breaks_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False)
    monkeypatch.undo()
    assert not (tmp_path / "b" / "record.json").exists()
    resumed = train(config, progress=False)
    np.testing.assert_equal(resumed.result, undisturbed.result)


def test_finished_run_returns_its_record_without_training(config, monkeypatch):
    record = train(config, progress=False)
    monkeypatch.setattr(patlib.training, "build_model", lambda *a: pytest.fail("trained again"))
    np.testing.assert_equal(train(config, progress=False).result, record.result)


def test_folder_of_another_run_is_refused(config, tmp_path):
    train(config, progress=False)
    other = with_fields(config, learning_rate=0.01)
    with pytest.raises(ValueError, match=r"learning_rate \(0.001 there, 0.01 here\)"):
        train(other, progress=False)
    (tmp_path / "run" / "record.json").unlink()  # an unfinished run is protected as well
    with pytest.raises(ValueError, match="holds another run"):
        train(other, progress=False)


def test_folder_of_the_same_settings_on_other_data_is_refused(config, camvid_tree):
    train(config, progress=False)
    (camvid_tree / "train" / "train_0.png").write_bytes(
        (camvid_tree / "train" / "train_1.png").read_bytes()
    )
    with pytest.raises(ValueError, match="holds another run: it differs in data"):
        train(config, progress=False)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(config, loss):
    record = train(with_fields(config, loss=loss, loss_params={}, epochs=1), progress=False)
    assert math.isfinite(record.result["curves"]["train_loss"][0])
    assert 0 <= record.result["test"]["miou"] <= 1


@pytest.mark.parametrize("model", ["unet", "attention_unet", "unetplusplus"])
def test_every_model_trains(config, model):
    params = {"width": 2} if model == "attention_unet" else {}
    fields = dict(model=model, model_params=params, epochs=1)
    record = train(with_fields(config, **fields), progress=False)
    assert 0 <= record.result["test"]["miou"] <= 1


def test_bfloat16_and_void_as_a_class_on_pets(config, pet_tree):
    fields = dict(dataset="oxford_pet", data_root=str(pet_tree), precision="bf16-mixed", epochs=1)
    record = train(with_fields(config, void="class", **fields), progress=False)
    assert record.result["class_names"] == ["body", "background", "boundary"]


def test_exploding_loss_stops_with_its_epoch(config, tmp_path):
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train(with_fields(config, learning_rate=1e30), progress=False)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_batch_larger_than_the_data_is_refused(config):
    with pytest.raises(ValueError, match="batch_size=7.*6 images"):
        train(with_fields(config, batch_size=7), progress=False)


def test_broken_file_stops_before_training(config, camvid_tree, monkeypatch):
    (camvid_tree / "test" / "test_2.png").write_bytes(b"")
    monkeypatch.setattr(patlib.training, "build_model", lambda *a: pytest.fail("too late"))
    with pytest.raises(ValueError, match=r"test_2\.png"):
        train(config, progress=False)


def test_learns_what_can_be_learnt(tmp_path, config):
    """Two colours, two classes: a network that learns at all gets this right."""
    rng = np.random.default_rng(0)
    root = tmp_path / "easy"
    for folder, n in {"train": 16, "val": 2, "test": 4}.items():
        for i in range(n):
            mask = np.kron(rng.integers(0, 2, (4, 5)), np.ones((8, 8))).astype(np.uint8)
            image = np.where(mask[..., None] == 1, [200, 40, 40], [40, 40, 200]).astype(np.uint8)
            for name, array in ((folder, image), (f"{folder}annot", mask)):
                (root / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / name / f"{i}.png")
    fields = dict(data_root=str(root), epochs=30, model_params={"width": 8}, learning_rate=5e-3)
    record = train(with_fields(config, **fields), progress=False)
    assert record.result["test"]["miou"] > 0.9
    losses = record.result["curves"]["train_loss"]
    assert losses[-1] < 0.5 * losses[0]

    # The checkpoint is the network that was scored.
    model, content = load_model(tmp_path / "run")
    metrics = SegmentationMetrics(11)
    dataset = build_dataset("camvid", root, "test", image_size=(32, 40))
    for image, target in dataset:
        metrics.update(model(image[None]), target[None])
    assert metrics.compute()["miou"] == pytest.approx(record.result["test"]["miou"], abs=0.01)
    assert content["class_names"][0] == "sky"
    labels = predict(tmp_path / "run" / "last.ckpt", root / "test" / "0.png")
    truth = np.asarray(Image.open(root / "testannot" / "0.png"))
    assert labels.shape == truth.shape and (labels == truth).mean() > 0.9


def test_order_and_flips_depend_on_seed_epoch_and_index_only(config):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    masks = rng.integers(0, 256, (6, 32, 32), dtype=np.uint8)
    split = Images(DecodedSplit(images, masks, None, ""), torch.device("cpu"))

    def epoch(number, **fields):
        batches = split.shuffled_batches(with_fields(config, **fields), number, 0)
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    first, again, later = epoch(0), epoch(0), epoch(1)
    assert torch.equal(first[1], again[1]) and not torch.equal(first[1], later[1])
    assert not torch.equal(first[1], epoch(0, seed=1)[1])
    # Image and mask stay together, flipped or not, and no image is lost.
    for image, target in zip(*first, strict=True):
        found = [
            flip
            for i in range(6)
            for flip in (False, True)
            if np.array_equal(target.numpy(), masks[i, :, ::-1] if flip else masks[i])
            and np.allclose(
                image.permute(1, 2, 0).numpy() * 255,
                images[i, :, ::-1] if flip else images[i],
                atol=1e-3,
            )
        ]
        assert len(found) == 1


def test_two_ranks_share_the_batches_of_one(config):
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    split = Images(DecodedSplit(images, images[..., 0], None, ""), torch.device("cpu"))
    one = list(split.shuffled_batches(config, 0, 0))
    parts = [list(split.shuffled_batches(with_fields(config, devices=2), 0, r)) for r in (0, 1)]
    for whole, a, b in zip(one, *parts, strict=True):
        assert torch.equal(whole[0], torch.cat([a[0], b[0]]))


def test_two_processes_end_agree_and_write_one_record(config, tmp_path):
    """5 test images in batches of 2: the second process has one batch fewer to score."""
    record = train(with_fields(config, devices=2, epochs=2), progress=False)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "last.ckpt",
        "log.csv",
        "record.json",
        "test_images.npz",
    ]
    stored = RunRecord.load(tmp_path / "run" / "record.json")
    np.testing.assert_equal(stored.result, record.result)
    # Scored again by one process, the weights give the same numbers.
    model, _ = load_model(tmp_path / "run")
    dataset = build_dataset("camvid", config.data_root, "test", image_size=(32, 40))
    split = Images(load_arrays(dataset), torch.device("cpu"))
    scores = evaluate(model, split, 2, SegmentationMetrics(11, record.result["class_counts"]))
    np.testing.assert_equal(scores["iou"], record.result["test"]["iou"])
    assert scores["pixel_accuracy"] == record.result["test"]["pixel_accuracy"]


def test_cosine():
    assert cosine(0, 10) == 1
    assert cosine(5, 10) == pytest.approx(0.5)
    assert 0 < cosine(9, 10) < 0.03


@pytest.mark.parametrize("text", ['{"loss": 3}', '{"config": {}, "result": {}, "provenance": {}}'])
def test_record_refuses_another_file(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not the record"):
        RunRecord.load(tmp_path / "x.json")


def test_damaged_checkpoint_is_named(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").write_bytes(b"half of a checkpoint")
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint, or a damaged one"):
        train(config, progress=False)


def test_predict_refuses_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        predict(tmp_path, "street.jpg")
