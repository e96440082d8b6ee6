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

import patlib.losses.pat
import patlib.training
from patlib import Predictor, RunConfig, RunRecord, load_model, predict, train
from patlib.batches import SplitTensors, draw_crops, scale_and_crop
from patlib.checkpoints import read_checkpoint, save_checkpoint
from patlib.data import SAMPLERS, DecodedSplit, build_dataset, count_classes, load_arrays
from patlib.evaluation import evaluate, smallest_unsigned
from patlib.losses import LOSSES, LDAMLoss
from patlib.metrics import SegmentationMetrics, count_per_image
from patlib.seeds import mix_seed
from patlib.training import build_optimizer, cosine, resolve_precision


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
    assert set(stored) == {"schema", "config", "result", "provenance", "checksum"}
    assert stored["config"]["loss"] == "pat" and "data_root" not in stored["config"]
    scores = {"miou", "pixel_accuracy", "mean_accuracy", "dice_error", "iou", "confusion"}
    scores |= {"released_miou", "precision", "recall", "predicted_ratio"}
    scores |= {"miou_i", "miou_c", "miou_i_worst10", "miou_c_worst10", "common", "rare"}
    scores |= {g + by for g in ("head", "mid", "tail") for by in ("", "_images")}
    assert set(stored["result"]["validation"]) == scores
    assert set(stored["result"]["test"]) == scores | {"boundary_iou"}
    assert stored["result"]["curves"]["epoch"] == [1, 2, 3]
    dataset = build_dataset("camvid", camvid_tree, "train", image_size=(32, 40))
    assert stored["result"]["class_counts"] == count_classes(dataset).tolist()
    masks = [set(target.unique().tolist()) for _, target in dataset]
    assert stored["result"]["class_images"] == [sum(c in m for m in masks) for c in range(11)]
    wanted = {"seed", "commit", "versions", "device", "seconds", "date", "data", "images_sha256"}
    assert wanted <= set(stored["provenance"])
    loaded = RunRecord.load(tmp_path / "run" / "record.json")
    np.testing.assert_equal(loaded.result["test"], record.result["test"])
    np.testing.assert_equal(loaded.result["shifted"], record.result["shifted"])
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


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": "adamw", "weight_decay": 0.1, "sampler": "repeat_factor"},
        {"optimizer": "sgd", "sampler": "rare_class", "augment": "flip_scale_crop"},
        {"loss": "ldam", "loss_params": {"deferred": 0.5}, "augment": "flip_scale_crop"},
    ],
    ids=str,
)
def test_goes_on_after_an_interruption_to_the_same_result(config, tmp_path, monkeypatch, fields):
    config = with_fields(config, **{"loss": "blv", "loss_params": {}, **fields})
    undisturbed = train(config, progress=False)
    config = with_fields(config, output_dir=str(tmp_path / "b"))

    scored = patlib.training.evaluate
    calls = []

    def breaks_in_the_second_epoch(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scored(*args, **options)

    with monkeypatch.context() as broken:
        broken.setattr(patlib.training, "evaluate", breaks_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)
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


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_loss_that_turns_nan_stops_with_step_rate_and_checkpoint(
    config, tmp_path, monkeypatch, epoch
):
    pat_loss, calls = patlib.losses.pat.pat_loss, []

    def nan_in_the_second_step(*args, **options):
        calls.append(1)
        return pat_loss(*args, **options) * (math.nan if len(calls) == 3 * epoch + 2 else 1)

    monkeypatch.setattr(patlib.losses.pat, "pat_loss", nan_in_the_second_step)
    with pytest.raises(FloatingPointError) as error:
        train(config, progress=False)
    path = tmp_path / "run" / "last.ckpt"
    rate = 1e-3 * (1 + math.cos(math.pi * (3 * epoch + 1) / 9)) / 2
    good = f"{path}, of epoch 1" if epoch else "none"
    for said in (f"in epoch {epoch + 1}: at step 2 of 3 it was nan", f"of {rate:g}, loss=", good):
        assert said in str(error.value)
    if epoch:
        assert len(read_checkpoint(path)["curves"]) == 1
    else:
        assert not path.exists()


def test_exploding_loss_stops(config, tmp_path):
    with pytest.raises(FloatingPointError, match="became (nan|inf) in epoch 1: at step [23] of 3"):
        train(with_fields(config, learning_rate=1e30), progress=False)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_deterministic_algorithms_are_asked_for_on_cuda_only(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    states = []
    for switch, accelerator in (("1", "cuda"), ("1", "cpu"), ("0", "cuda")):
        monkeypatch.setenv("PATLIB_DETERMINISTIC", switch)
        with patlib.training.convolutions(accelerator):
            asked = torch.are_deterministic_algorithms_enabled()
            states.append((asked, torch.backends.cudnn.benchmark))
        assert not torch.are_deterministic_algorithms_enabled()
    assert states == [(True, False), (False, True), (False, True)]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


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
    sizes = torch.ones(6, 11, dtype=torch.int64)

    def epoch(number, **fields):
        batches = split.shuffled_batches(with_fields(config, **fields), number, 0, sizes)
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
    sizes = torch.ones(6, 11, dtype=torch.int64)
    for fields in ({}, {"augment": "flip_scale_crop", "sampler": "rare_class"}):
        one = list(split.shuffled_batches(with_fields(config, **fields), 0, 0, sizes))
        half = with_fields(config, devices=2, **fields)
        parts = [list(split.shuffled_batches(half, 0, rank, sizes)) for rank in (0, 1)]
        for whole, a, b in zip(one, *parts, strict=True):
            for i in (0, 1):
                assert torch.equal(whole[i], torch.cat([a[i], b[i]]))


def test_two_processes_end_agree_and_write_one_record(config, tmp_path):
    """5 test images in batches of 2: the second process has one batch fewer to score."""
    record = train(with_fields(config, devices=2, epochs=2), progress=False)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        ".lock",
        "last.ckpt",
        "log.csv",
        "previous.ckpt",
        "record.json",
        "test_images.npz",
    ]
    stored = RunRecord.load(tmp_path / "run" / "record.json")
    np.testing.assert_equal(stored.result, record.result)
    # Scored again by one process, the weights give the same numbers.
    model, content = load_model(tmp_path / "run")
    dataset = build_dataset("camvid", config.data_root, "test", image_size=(32, 40))
    split = SplitTensors(load_arrays(dataset), torch.device("cpu"))
    metrics = SegmentationMetrics(11, record.result["class_counts"])
    shifts = torch.stack([content["priors"].shift(s) for s in content["priors"].grid()])
    again = evaluate(model, split, 2, metrics, shown=[0, 3, 4], shifts=shifts, boundaries=True)
    for name in ("iou", "confusion", "boundary_iou", "miou_c"):
        np.testing.assert_equal(again.scores[name], record.result["test"][name])
    with np.load(tmp_path / "run" / "test_images.npz") as kept:
        np.testing.assert_array_equal(again.counts, kept["counts"])
        np.testing.assert_array_equal(again.labels, kept["labels"][[0, 3, 4]])
        np.testing.assert_array_equal(again.boundaries, kept["boundary_counts"])
        np.testing.assert_array_equal(again.shifted[:, :, 0], kept["shifted_tp"])
        np.testing.assert_array_equal(again.shifted[:, :, 1], kept["shifted_predicted"])


# --- order, augmentation, optimiser, progress -----------------------------------------------------


def drawn_split(masks):
    """Images whose three channels are the mask, so that both can be compared."""
    images = np.repeat(masks[..., None], 3, -1)
    return SplitTensors(DecodedSplit(images, masks, None, ""), torch.device("cpu"))


def test_the_order_and_flips_of_the_default_are_those_of_the_records(config):
    masks = np.random.default_rng(0).integers(0, 11, (6, 32, 33), dtype=np.uint8)
    sizes = torch.ones(6, 11, dtype=torch.int64)
    batches = drawn_split(masks).shuffled_batches(with_fields(config, seed=3), 2, 0, sizes)
    targets = torch.cat([target for _, target in batches])
    generator = torch.Generator().manual_seed(mix_seed(3, 2))
    order = torch.randperm(6, generator=generator).tolist()
    flipped = (torch.rand(6, generator=generator) < 0.5).tolist()
    expected = [masks[i, :, ::-1] if flipped[i] else masks[i] for i in order]
    np.testing.assert_array_equal(targets, expected)


@pytest.mark.parametrize("name", ["repeat_factor", "rare_class"])
def test_the_samplers_order_is_shown(config, name):
    """Image 0 alone has class 1. Each showing of an image is flipped or not by itself."""
    masks = np.tile(np.arange(32, dtype=np.uint8), (40, 8, 1)) + 40 * np.arange(40)[:, None, None]
    masks = (masks % 256).astype(np.uint8)
    sizes = torch.tensor([[5, 5]] + [[10, 0]] * 39)
    config = with_fields(config, sampler=name)
    split = drawn_split(masks)
    flips = set()
    for epoch in range(3):
        batches = list(split.shuffled_batches(config, epoch, 0, sizes))
        assert len(batches) == 20
        generator = torch.Generator().manual_seed(mix_seed(0, epoch))
        order = SAMPLERS[name](sizes, generator).tolist()
        shown = [t for _, target in batches for t in target.numpy()]
        for i, target in zip(order, shown, strict=True):
            turned = not np.array_equal(target, masks[i])
            assert not turned or np.array_equal(target, masks[i, :, ::-1])
            if i == 0:
                flips.add(turned)
    assert order.count(0) > 1 and flips == {False, True}


def test_training_gives_the_sampler_the_sizes_of_its_images(config, camvid_tree, monkeypatch):
    seen = []

    def sampler(sizes, generator):
        seen.append(sizes)
        return torch.zeros(len(sizes), dtype=torch.int64)

    monkeypatch.setitem(patlib.batches.SAMPLERS, "rare_class", sampler)
    train(with_fields(config, sampler="rare_class", epochs=1), progress=False)
    dataset = build_dataset("camvid", camvid_tree, "train", image_size=(32, 40))
    masks = np.stack([target.numpy() for _, target in dataset])
    np.testing.assert_array_equal(
        seen[0], [[(mask == c).sum() for c in range(11)] for mask in masks]
    )


def test_drawn_parts_lie_in_the_image_or_contain_it():
    draws = torch.rand(2000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws[0], draws[1] = 0, 1 - 1e-12
    top, left, height, width = draw_crops(draws, (40, 60)).T
    assert (height[0], width[0]) == (80, 120) and (height[1], width[1]) == (20, 30)
    scale = 0.5 + 1.5 * draws[:, 0]
    np.testing.assert_array_equal(height, (40 / scale).round())
    for start, length, whole in ((top, height, 40), (left, width, 60)):
        end = start + length
        inside, outside = (start >= 0) & (end <= whole), (start <= 0) & (end >= whole)
        assert (inside | outside).all()
        # Both ends are reached, and all between is equally likely.
        large = length < whole / 1.5
        place = (start[large] / (whole - length[large])).numpy()
        assert place.min() == 0 and place.max() == 1 and abs(place.mean() - 0.5) < 0.03
    assert (top[1], left[1]) == (20, 30) and (top[0], left[0]) == (-40, -60)


def test_a_scaled_image_and_its_mask_stay_together():
    rng = np.random.default_rng(0)
    height, width = 24, 36
    target = torch.from_numpy(np.kron(rng.integers(0, 9, (1, 4, 4)), np.ones((1, 6, 9), np.int64)))
    target[0, :4] = 255
    image = torch.rand(1, 3, height, width)
    for crop in [
        (0, 0, 24, 36),
        (3, 5, 12, 18),
        (-7, -20, 48, 72),
        (-2, -3, 30, 45),
        (2, 7, 17, 26),
    ]:
        top, left, h, w = crop
        cropped, labels = scale_and_crop(image, target, torch.tensor([crop]))
        assert cropped.shape == image.shape and labels.shape == target.shape
        assert labels.dtype == torch.int64
        for y in range(height):
            for x in range(width):
                # The pixel of the part under the middle of this one.
                row, column = (
                    top + int((y + 0.5) * h / height),
                    left + int((x + 0.5) * w / width),
                )
                inside = 0 <= row < height and 0 <= column < width
                assert labels[0, y, x] == (target[0, row, column] if inside else 255)
        # A linear image stays linear, where its neighbours are inside.
        ramp = torch.arange(width).float().expand(1, 3, height, width)
        moved = scale_and_crop(ramp, target, torch.tensor([crop]))[0][0, 0, height // 2]
        places = left + (torch.arange(width) + 0.5) * w / width - 0.5
        sure = (places > 3) & (places < width - 4)
        sure &= (torch.arange(width) > 3) & (torch.arange(width) < width - 4)
        torch.testing.assert_close(moved[sure], places[sure].float(), atol=0.06, rtol=0)
    assert torch.equal(scale_and_crop(image, target, torch.tensor([[0, 0, 24, 36]]))[0], image)


def test_scales_and_crops_depend_on_seed_epoch_and_index_only(config):
    masks = np.random.default_rng(0).integers(0, 11, (6, 32, 40), dtype=np.uint8)
    split, sizes = drawn_split(masks), torch.ones(6, 11, dtype=torch.int64)
    config = with_fields(config, augment="flip_scale_crop")

    def epoch(number, **fields):
        batches = split.shuffled_batches(with_fields(config, **fields), number, 0, sizes)
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    first, again = epoch(0), epoch(0)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], epoch(1)[1])
    assert not torch.equal(first[1], epoch(0, seed=1)[1])
    many = [epoch(number)[1] for number in range(5)]
    ignored = [(target == 255).float().mean().item() for part in many for target in part]
    assert max(ignored) > 0.3 and min(ignored) == 0 and max(ignored) < 0.76
    assert all(((target < 11) | (target == 255)).all() for target in many)


def test_optimisers(config):
    model = torch.nn.Conv2d(2, 2, 1)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    for name, kind in kinds.items():
        optimizer = build_optimizer(with_fields(config, optimizer=name, weight_decay=0.1), model)
        assert type(optimizer) is kind
        group = optimizer.param_groups[0]
        assert group["lr"] == config.learning_rate and group["weight_decay"] == 0.1
    assert group["momentum"] == 0.9 and not group["nesterov"]


@pytest.mark.parametrize("loss", ["ldam", "mix"])
def test_the_loss_is_told_how_much_of_the_training_is_done(config, monkeypatch, loss):
    params = {"deferred": 0.5}
    if loss == "mix":
        params = {"losses": {"ce": 1.0, "ldam": 0.1}, "params": {"ldam": params}}
    forward, seen = LDAMLoss.forward, []

    def noted(self, *args):
        seen.append((self.progress, self.current_weights() is not None))
        return forward(self, *args)

    monkeypatch.setattr(LDAMLoss, "forward", noted)
    train(with_fields(config, loss=loss, loss_params=params, epochs=4), progress=False)
    steps = [(0.0, False), (0.25, False), (0.5, True), (0.75, True)]
    assert list(dict.fromkeys(seen)) == steps and len(seen) == 4 * 3


def test_training_gives_the_loss_what_its_weights_need(config):
    params = {"sizes": "dataset", "presence_exponent": 1.0}
    record = train(with_fields(config, loss_params=params, epochs=1), progress=False)
    assert math.isfinite(record.result["curves"]["train_loss"][0])
    params = {"class_weights": "median_frequency"}
    record = train(
        with_fields(
            config, loss="ce", loss_params=params, epochs=1, output_dir=config.output_dir + "2"
        ),
        progress=False,
    )
    assert math.isfinite(record.result["curves"]["train_loss"][0])
    wrong = with_fields(config, loss="ce", loss_params={"class_weights": [1.0, 2.0]})
    with pytest.raises(ValueError, match="class_weights must .*11"):
        train(with_fields(wrong, output_dir=config.output_dir + "3"), progress=False)


def test_automatic_precision_is_the_run_of_what_it_chooses(config, tmp_path, monkeypatch):
    auto = with_fields(config, precision="auto", epochs=1)
    for fast, chosen in ((False, "32-true"), (True, "bf16-mixed")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert resolve_precision(auto) == chosen
        named = with_fields(auto, precision=chosen)
        assert resolve_precision(named) == chosen
        output_dir = str(tmp_path / chosen)
        record = train(with_fields(auto, output_dir=output_dir), progress=False)
        assert record.config == named.settings()
        # The same folder with the precision named is the same run.
        train(with_fields(named, output_dir=output_dir), progress=False)


# --- shifts of the logits -------------------------------------------------------------------------


def test_shifted_counts_are_those_of_the_shifted_network(config, tmp_path, camvid_tree):
    record = train(with_fields(config, epochs=2), progress=False)
    network, content = load_model(tmp_path / "run")
    priors = content["priors"]
    with np.load(tmp_path / "run" / "test_images.npz") as file:
        kept = {name: file[name] for name in file.files}
    grid = list(zip(kept["shift_kinds"].tolist(), kept["shift_strengths"].tolist(), strict=True))
    assert grid == [(kind, v) for shift in priors.grid() for kind, v in shift.items()]
    chosen = record.result["shifted"]
    miou = {"test": [], "validation": []}
    for split, prefix in (("test", ""), ("validation", "validation_")):
        dataset = build_dataset("camvid", camvid_tree, split, image_size=(32, 40))
        images, targets = map(torch.stack, zip(*dataset, strict=True))
        with torch.no_grad():
            logits = torch.cat([network(part) for part in images.split(2)])
        true = kept[f"{prefix}counts"][:, 1].sum(0)
        for number, (kind, strength) in enumerate(grid):
            shift = priors.shift({kind: strength}).float()
            labels = (logits - shift[:, None, None]).argmax(1)
            counts = count_per_image(labels, targets, 11).numpy()
            tp, predicted = (
                kept[f"{prefix}{name}"][number] for name in ("shifted_tp", "shifted_predicted")
            )
            assert tp.dtype == np.uint8 and predicted.dtype == np.uint16
            np.testing.assert_array_equal(tp, counts[:, 0])
            np.testing.assert_array_equal(predicted, counts[:, 2])
            tp, predicted = (x.sum(0, dtype=np.int64) for x in (tp, predicted))
            with np.errstate(invalid="ignore"):
                miou[split].append(np.nanmean(tp / (true + predicted - tp)))
        unshifted = grid.index(("tau", 0.0))
        np.testing.assert_array_equal(
            kept[f"{prefix}shifted_tp"][unshifted], kept[f"{prefix}counts"][:, 0]
        )
    best = int(np.argmax(miou["validation"]))
    found = [chosen["any"][split]["miou"] for split in ("validation", "test")]
    assert found == pytest.approx([miou["validation"][best], miou["test"][best]])
    assert chosen["any"]["prior_shift"] == {grid[best][0]: grid[best][1]}
    assert set(chosen["any"]["test"]) == set(record.result["test"]) - {
        "released_miou",
        "confusion",
        "boundary_iou",
    }


def test_counts_of_large_images_are_kept_in_a_type_that_holds_them():
    assert smallest_unsigned(np.array([0, 255])).dtype == np.uint8
    assert smallest_unsigned(np.array([65_535], np.int32)).dtype == np.uint16
    large = smallest_unsigned(np.array([65_536], np.int32))
    assert large.dtype == np.uint32 and large[0] == 65_536


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
    with pytest.raises(ValueError, match=r"x\.json .*schema must be 1, got 2"):
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
    monkeypatch.setattr(patlib.files.tempfile, "mkstemp", lambda **_: full)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        save_checkpoint(tmp_path / "last.ckpt", {"model": torch.zeros(3)})
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

    def counted(model, images, *args, **options):
        calls.append((len(images), options.get("shifts") is not None))
        return scored(model, images, *args, **options)

    monkeypatch.setattr(patlib.training, "evaluate", counted)
    train(config, progress=False)
    # Validation after every epoch, then the test; shifts in the end only.
    assert calls == [(2, False), (2, False), (2, True), (5, True)]


def test_interrupted_after_the_last_epoch_it_is_scored_and_its_seconds_add_up(
    config, tmp_path, monkeypatch
):
    undisturbed = train(config, progress=False)
    config = with_fields(config, output_dir=str(tmp_path / "b"))
    with monkeypatch.context() as broken:
        broken.setattr(RunRecord, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, progress=False)
    checkpoint = read_checkpoint(tmp_path / "b" / "last.ckpt")
    checkpoint["seconds"] = {"data": 1000.0, "training": 2000.0, "all": 4000.0}
    save_checkpoint(tmp_path / "b" / "last.ckpt", checkpoint)
    record = train(config, progress=False)
    np.testing.assert_equal(record.result, undisturbed.result)
    seconds = record.provenance["seconds"]
    assert seconds["training"] == 2000 and 1000 < seconds["data"] < 1100
    assert 4000 < seconds["all"] < 4100
    with np.load(tmp_path / "run" / "test_images.npz") as a:
        with np.load(tmp_path / "b" / "test_images.npz") as b:
            names = {"counts", "validation_counts", "boundary_counts", "shown", "labels"}
            names |= {"shift_kinds", "shift_strengths", "shifted_tp", "shifted_predicted"}
            names |= {"validation_shifted_tp", "validation_shifted_predicted"}
            assert set(a) == names == set(b)
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


@pytest.mark.parametrize("prior_shift", [{"tau": 0.5}, {"kappa": 1.0}])
def test_predictor_shifts_the_logits(config, tmp_path, camvid_tree, prior_shift):
    record = train(with_fields(config, loss_params={"weight": "none"}, epochs=1), progress=False)
    file = camvid_tree / "test" / "test_1.png"
    found = predict(tmp_path / "run", file, prior_shift=prior_shift)
    # By hand, from the training masks: the pixels n, and the images m, of each class.
    pixels, images = (
        np.log(np.array(record.result[name]) / sum(record.result[name]))
        for name in ("class_counts", "class_images")
    )
    shift = 0.5 * pixels if "tau" in prior_shift else images - pixels
    network, _ = load_model(tmp_path / "run")
    with Image.open(file) as image:
        resized = np.asarray(image.resize((40, 32), Image.Resampling.BILINEAR)) / np.float32(255)
    with torch.no_grad():
        logits = network(torch.from_numpy(resized).permute(2, 0, 1)[None])
        logits = torch.nn.functional.interpolate(logits, size=(36, 48), mode="bilinear")[0]
    expected = (logits - torch.from_numpy(shift)[:, None, None]).argmax(0).numpy()
    assert (found == expected).mean() > 0.999  # but for ties in float32
    assert (found != predict(tmp_path / "run", file)).any()
    unshifted = predict(tmp_path / "run", file, prior_shift={"tau": 0})
    np.testing.assert_array_equal(unshifted, predict(tmp_path / "run", file))


def test_a_checkpoint_without_priors_labels_without_shift_only(config, tmp_path, camvid_tree):
    train(with_fields(config, epochs=1), progress=False)
    path = tmp_path / "run" / "last.ckpt"
    content = read_checkpoint(path)
    del content["priors"]
    save_checkpoint(path, content)
    assert predict(path, camvid_tree / "test" / "test_1.png").shape == (36, 48)
    with pytest.raises(ValueError, match="prior_shift must be None for .*before 0.2.0"):
        Predictor(path, prior_shift={"tau": 1})


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
    with pytest.raises(ValueError, match="prior_shift must be one of .* got 0.5"):
        Predictor(tmp_path / "run", prior_shift=0.5)
    with pytest.raises(ValueError, match="images must be an iterable of images"):
        predictor("street.jpg")
    with pytest.raises(ValueError, match="image must be a file or an image of PIL, got int"):
        next(predictor([3]))
