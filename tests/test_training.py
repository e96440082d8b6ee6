"""Training: the record, its repeatability, and going on after an interruption."""

import csv
import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image

import patlib.training
from patlib import Predictor, RunConfig, RunRecord, load_model, predict, train
from patlib.data import DecodedSplit, build_dataset, count_classes, load_arrays
from patlib.losses import LOSSES
from patlib.metrics import SegmentationMetrics
from patlib.training import SplitTensors, cosine, evaluate


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
    assert set(stored) == {"schema", "config", "result", "provenance"}
    assert stored["config"]["loss"] == "pat" and "data_root" not in stored["config"]
    scores = {"miou", "pixel_accuracy", "mean_accuracy", "dice_error", "iou", "confusion"}
    for part in ("test", "validation"):
        assert scores | {"head", "mid", "tail", "released_miou"} == set(stored["result"][part])
    assert stored["result"]["curves"]["epoch"] == [1, 2, 3]
    dataset = build_dataset("camvid", camvid_tree, "train", image_size=(32, 40))
    assert stored["result"]["class_counts"] == count_classes(dataset).tolist()
    wanted = {"seed", "commit", "versions", "device", "seconds", "date", "data"}
    assert wanted <= set(stored["provenance"])
    loaded = RunRecord.load(tmp_path / "run" / "record.json")
    np.testing.assert_equal(loaded.result["test"], record.result["test"])
    assert loaded.config == config.settings()
    for split, n in (("test", 5), ("validation", 2)):
        confusion = np.array(stored["result"][split]["confusion"])
        assert confusion.shape == (11, 11) and confusion.sum() <= n * 32 * 40
        hits, unions = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
        with np.errstate(invalid="ignore"):
            iou = hits / (unions - hits)
        np.testing.assert_allclose(iou, record.result[split]["iou"])
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["train_loss"]) for r in rows] == record.result["curves"]["train_loss"]


def test_kept_images_are_those_that_were_scored(config, tmp_path, camvid_tree):
    record = train(config, progress=False)
    with np.load(tmp_path / "run" / "test_images.npz") as kept:
        tp, true, predicted = kept["counts"].sum(0)
        confusion = np.array(record.result["validation"]["confusion"])
        sums = [confusion.diagonal(), confusion.sum(1), confusion.sum(0)]
        np.testing.assert_array_equal(kept["validation_counts"].sum(0), sums)
        shown, labels = kept["shown"], kept["labels"]
        assert len(kept["counts"]) == record.provenance["num_images"]["test"] == 5
    with np.errstate(invalid="ignore"):  # a class that is nowhere
        iou = tp / (true + predicted - tp)
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
    with pytest.raises(ValueError, match="batch_size must be at most the 6 images .* got 7"):
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
    split = SplitTensors(DecodedSplit(images, masks, None, ""), torch.device("cpu"))

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
    split = SplitTensors(DecodedSplit(images, images[..., 0], None, ""), torch.device("cpu"))
    one = list(split.shuffled_batches(config, 0, 0))
    parts = [list(split.shuffled_batches(with_fields(config, devices=2), 0, r)) for r in (0, 1)]
    for whole, a, b in zip(one, *parts, strict=True):
        assert torch.equal(whole[0], torch.cat([a[0], b[0]]))


def test_two_processes_end_agree_and_write_one_record(config, tmp_path):
    """5 test images in batches of 2: the second process has one batch fewer to score."""
    record = train(with_fields(config, devices=2, epochs=2), progress=False)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        ".lock",
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
    split = SplitTensors(load_arrays(dataset), torch.device("cpu"))
    metrics = SegmentationMetrics(11, record.result["class_counts"])
    scores, counts, labels = evaluate(model, split, 2, metrics, shown=[0, 3, 4])
    np.testing.assert_equal(scores["iou"], record.result["test"]["iou"])
    assert scores["confusion"] == record.result["test"]["confusion"]
    with np.load(tmp_path / "run" / "test_images.npz") as kept:
        np.testing.assert_array_equal(counts, kept["counts"])
        np.testing.assert_array_equal(labels, kept["labels"][[0, 3, 4]])


def test_cosine():
    assert cosine(0, 10) == 1
    assert cosine(5, 10) == pytest.approx(0.5)
    assert 0 < cosine(9, 10) < 0.03


@pytest.mark.parametrize(
    "text",
    [
        b'{"loss": 3}',
        b'{"schema": 1, "config": {}, "result": {}, "provenance": {}}',
        b"[1]",
        b"\xff\xfe",
    ],
)
def test_record_refuses_another_file(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"x\.json is not the record"):
        RunRecord.load(tmp_path / "x.json")


def test_damaged_checkpoint_is_named(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").write_bytes(b"half of a checkpoint")
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint, or a damaged one"):
        train(config, progress=False)


def test_predict_refuses_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="run must be a folder with a last.ckpt"):
        predict(tmp_path, "street.jpg")


def test_a_record_of_another_schema_is_refused(tmp_path):
    scores = {"miou": 0.5}
    RunRecord({}, {"test": scores, "validation": scores}, {}).save(tmp_path / "x.json")
    assert RunRecord.load(tmp_path / "x.json").config["loss"] == "pat"  # completed
    text = (tmp_path / "x.json").read_text().replace('"schema": 1', '"schema": 2')
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: schema must be 1, got 2"):
        RunRecord.load(tmp_path / "x.json")


def test_a_record_made_on_a_gpu_is_read_and_described_anywhere(config, tmp_path):
    record = train(with_fields(config, epochs=1), progress=False)
    provenance = {**record.provenance, "device": "NVIDIA H200", "devices": 4}
    elsewhere = RunRecord(record.config, record.result, provenance)
    elsewhere.save(tmp_path / "gpu.json")
    again = RunRecord.load(tmp_path / "gpu.json")
    assert RunConfig(**again.config, data_root="x").settings() == config_settings(config, 1)
    on_gpu = with_fields(config, device="cuda", devices=2, precision="16-mixed")
    assert on_gpu.identity() == with_fields(config, precision="16-mixed").identity()


def config_settings(config, epochs):
    return with_fields(config, epochs=epochs).settings()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"device": "cuda"}, "devices must be at most the 0 CUDA devices .* got 1"),
        ({"precision": "16-mixed"}, "precision must be .* on a CPU, got '16-mixed'"),
    ],
)
def test_what_this_machine_cannot_run_is_refused_before_the_data_are_read(
    config, monkeypatch, tmp_path, fields, message
):
    monkeypatch.setattr(patlib.training, "build_dataset", lambda *a, **k: pytest.fail("too late"))
    with pytest.raises(ValueError, match=message):
        train(with_fields(config, **fields), progress=False)
    assert not (tmp_path / "run").exists()


def test_output_dir_is_tried_before_the_data_are_read(config, monkeypatch, tmp_path):
    monkeypatch.setattr(patlib.training, "build_dataset", lambda *a, **k: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    for wrong in ("file", "file/run"):
        with pytest.raises(ValueError, match=f"output_dir must be a folder .*{wrong}'"):
            train(with_fields(config, output_dir=str(tmp_path / wrong)), progress=False)


def test_a_folder_in_use_is_refused(config, monkeypatch, tmp_path):
    monkeypatch.setattr(patlib.training, "LOCK_SECONDS", 0.1)
    with patlib.training.output_folder(config.output_dir):
        with pytest.raises(RuntimeError, match="output_dir must be a folder .* same time, got"):
            train(config, progress=False)
    assert train(with_fields(config, epochs=1), progress=False)


def test_what_a_killed_run_left_half_written_is_removed(config, tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".last.ckpt-abc", ".record.json-1", ".other"):
        (tmp_path / "run" / name).write_text("half")
    train(with_fields(config, epochs=1), progress=False)
    hidden = {path.name for path in (tmp_path / "run").glob(".*")}
    assert hidden == {".lock", ".other"}


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    full = (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "beside"))
    monkeypatch.setattr(patlib.records.tempfile, "mkstemp", lambda **_: full)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        patlib.training.save_checkpoint(tmp_path / "last.ckpt", {"model": torch.zeros(3)})
    assert not list(tmp_path.iterdir())


def test_the_callers_random_numbers_and_cudnn_stay_as_they_are(config, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(with_fields(config, loss="blv", loss_params={}, epochs=1), progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert torch.backends.cudnn.benchmark is False


def test_each_part_is_scored_once(config, monkeypatch):
    scored, calls = patlib.training.evaluate, []

    def counted(model, images, *args):
        calls.append(len(images))
        return scored(model, images, *args)

    monkeypatch.setattr(patlib.training, "evaluate", counted)
    train(config, progress=False)
    assert calls == [2, 2, 2, 5]  # validation after every epoch, then the test


def test_interrupted_after_the_last_epoch_it_is_scored_and_its_seconds_add_up(
    config, tmp_path, monkeypatch
):
    undisturbed = train(config, progress=False)
    config = with_fields(config, output_dir=str(tmp_path / "b"))
    with monkeypatch.context() as broken:
        broken.setattr(RunRecord, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, progress=False)
    checkpoint = patlib.training.read_checkpoint(tmp_path / "b" / "last.ckpt")
    checkpoint["seconds"] = {"data": 1000.0, "training": 2000.0, "all": 4000.0}
    patlib.training.save_checkpoint(tmp_path / "b" / "last.ckpt", checkpoint)
    record = train(config, progress=False)
    np.testing.assert_equal(record.result, undisturbed.result)
    seconds = record.provenance["seconds"]
    assert seconds["training"] == 2000 and 1000 < seconds["data"] < 1100
    assert 4000 < seconds["all"] < 4100
    with np.load(tmp_path / "run" / "test_images.npz") as a:
        with np.load(tmp_path / "b" / "test_images.npz") as b:
            assert set(a) == {"counts", "validation_counts", "shown", "labels"} == set(b)
            assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_checkpoint_beside_the_record_of_another_run_is_refused(config, tmp_path):
    one, other = (
        with_fields(config, epochs=1, loss=loss, loss_params={}, output_dir=str(tmp_path / loss))
        for loss in ("ce", "pat")
    )
    for run in (one, other):
        train(run, progress=False)
    (tmp_path / "ce" / "last.ckpt").write_bytes((tmp_path / "pat" / "last.ckpt").read_bytes())
    with pytest.raises(ValueError, match=r"last\.ckpt and record\.json .*one run.*loss"):
        load_model(tmp_path / "ce")
    (tmp_path / "ce" / "record.json").unlink()
    assert load_model(tmp_path / "ce")[1]["config"]["loss"] == "pat"


def test_any_changed_byte_of_the_weights_is_seen(config, tmp_path):
    train(with_fields(config, epochs=1), progress=False)
    path = tmp_path / "run" / "last.ckpt"
    whole = bytearray(path.read_bytes())
    weights = load_model(path)[0].classifier.weight.detach().permute(0, 2, 3, 1)
    place = whole.index(weights.contiguous().numpy().tobytes())
    (tmp_path / "run" / "record.json").unlink()
    whole[place + 1] ^= 4
    path.write_bytes(whole)
    for use in (load_model, predict, lambda *_: train(with_fields(config, epochs=1))):
        with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint, or a damaged one"):
            use(*([path, "x.png"] if use is predict else [path]))


def test_a_foreign_checkpoint_is_named(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint.* is missing"):
        load_model(tmp_path)


# --- prediction -----------------------------------------------------------------------------------


def test_predictor_labels_many_images_as_predict_labels_each(config, tmp_path, camvid_tree):
    train(with_fields(config, epochs=1), progress=False)
    files = sorted((camvid_tree / "test").iterdir())
    tall = Image.open(files[0]).resize((31, 57))
    images = [files[0], str(files[1]), tall, Image.open(files[2]).convert("L"), files[3]]
    predictor = Predictor(tmp_path / "run", device="cpu", batch_size=2)
    assert predictor.image_size == (32, 40) and predictor.class_names[0] == "sky"
    read = []

    def one_by_one():
        for image in images:
            read.append(image)
            yield image

    results = predictor(one_by_one())
    first = next(results)
    assert len(read) == 2  # no more than a batch at a time
    found = [first, *results]
    assert [labels.shape for labels in found] == [(36, 48), (36, 48), (57, 31), (36, 48), (36, 48)]
    for image, labels in zip(images, found, strict=True):
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, predict(tmp_path / "run", image))

    # The reference: the network on the resized image, its logits resized back.
    network, _ = load_model(tmp_path / "run")
    pixels = np.asarray(tall.resize((40, 32), Image.Resampling.BILINEAR)) / np.float32(255)
    with torch.no_grad():
        logits = network(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        logits = torch.nn.functional.interpolate(logits, size=(57, 31), mode="bilinear")
    np.testing.assert_array_equal(found[2], logits[0].argmax(0))


def test_predict_turns_a_photo_as_its_camera_says(config, tmp_path, camvid_tree):
    train(with_fields(config, epochs=1), progress=False)
    with Image.open(camvid_tree / "test" / "test_0.png") as image:
        upright = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "photo.png", exif=exif)
    expected = predict(tmp_path / "run", upright)
    np.testing.assert_array_equal(predict(tmp_path / "run", tmp_path / "photo.png"), expected)


def test_predictor_refuses_by_name(config, tmp_path):
    with pytest.raises(ValueError, match="device must be one of .* got 'gpu'"):
        Predictor(tmp_path, device="gpu")
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        Predictor(tmp_path, batch_size=0)
    train(with_fields(config, epochs=1), progress=False)
    predictor = Predictor(tmp_path / "run")
    with pytest.raises(ValueError, match="images must be an iterable of images"):
        predictor("street.jpg")
    with pytest.raises(ValueError, match="image must be a file or an image of PIL, got int"):
        next(predictor([3]))
