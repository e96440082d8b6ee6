"""A network, data and a logger of the user's own in `train`."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from lightning.fabric.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from patlib import Predictor, RunConfig, load_model, train
from patlib.data import build_dataset, load_arrays
from patlib.models import build_model
from patlib.own import decode_datasets, fingerprint_model
from patlib.seeds import seeded

SPLITS = ("train", "validation", "test")


class Leaves(torch.utils.data.Dataset):
    """Images in tensors, as somebody has them."""

    class_names = ("ground", "leaf", "bug")

    def __init__(self, n, seed=0, size=(32, 40)):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.rand(n, 3, *size, generator=generator)
        self.masks = torch.randint(3, (n, *size), generator=generator)
        self.masks[:, :2] = 255

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.masks[index]


class Net(nn.Module):
    def __init__(self, num_classes=3, width=4):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.last = nn.Conv2d(width, num_classes, 1)

    def forward(self, images):
        return self.last(self.first(images).relu())


def leaves(**options):
    return {split: Leaves(n, **options) for split, n in zip(SPLITS, (6, 2, 3), strict=True)}


@pytest.fixture
def config(tmp_path):
    return RunConfig(epochs=2, batch_size=2, device="cpu", output_dir=str(tmp_path / "run"))


def same(config, **fields):
    return dataclasses.replace(config, **fields)


def test_a_network_and_data_brought_along_are_those_that_are_trained(config, tmp_path):
    torch.manual_seed(0)
    network, data = Net(), leaves()
    before = fingerprint_model(network)
    record = train(config, progress=False, model=network, datasets=data)
    assert fingerprint_model(network) == before  # the caller's is as it was
    assert record.config["model"] == f"own:{__name__}.Net"
    assert record.config["model_params"] == {"initial_sha256": before}
    assert record.config["dataset"] == f"own:{__name__}.Leaves"
    assert record.config["image_size"] == [32, 40]
    assert record.result["class_names"] == ["ground", "leaf", "bug"]
    valid = data["train"].masks[data["train"].masks != 255]
    assert record.result["class_counts"] == valid.bincount(minlength=3).tolist()

    with pytest.raises(ValueError, match=r"model must be the network that was trained, .*Net, got"):
        load_model(tmp_path / "run")
    trained, content = load_model(tmp_path / "run", Net())
    assert content["class_names"] == ("ground", "leaf", "bug")
    assert fingerprint_model(trained) != before
    # Pixel accuracy of the network that came back, counted here.
    masks = data["test"].masks
    with torch.no_grad():
        images = (255 * data["test"].images).round() / 255
        right = (trained(images).argmax(1) == masks)[masks != 255].double().mean()
    assert record.result["test"]["pixel_accuracy"] == pytest.approx(right.item(), abs=1e-4)
    labels = next(Predictor(tmp_path / "run", model=Net())([_pil(images[0])]))
    assert labels.shape == (32, 40)


def _pil(image):
    from PIL import Image

    return Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy())


def test_ours_brought_along_gives_the_result_of_the_configuration(config, camvid_tree, tmp_path):
    of_data = {"dataset": "camvid", "data_root": camvid_tree, "image_size": (32, 40)}
    named = same(config, **of_data, model_params={"width": 2})
    expected = train(same(named, output_dir=str(tmp_path / "named")), progress=False)
    data = {s: build_dataset("camvid", camvid_tree, s, image_size=(32, 40)) for s in SPLITS}
    with seeded(config.seed):
        network = build_model("segnet", 11, width=2)
    found = train(config, progress=False, model=network, datasets=data)
    assert found.provenance["data"] == expected.provenance["data"]
    np.testing.assert_equal(found.result, expected.result)


def test_goes_on_with_the_same_network_and_data_and_refuses_others(config):
    torch.manual_seed(0)
    network, data = Net(), leaves()
    first = train(config, progress=False, model=network, datasets=data)
    again = train(config, progress=False, model=network, datasets=data)
    assert again.provenance["date"] == first.provenance["date"]
    with pytest.raises(ValueError, match="holds another run: it differs in model_params"):
        train(config, progress=False, model=Net(), datasets=data)
    with pytest.raises(ValueError, match="holds another run: it differs in data"):
        train(config, progress=False, model=network, datasets=leaves(seed=1))
    with pytest.raises(ValueError, match=r"holds another run: it differs in .*model \("):
        train(config, progress=False, datasets=data)


def test_arrays_are_the_images_to_8_bits(camvid_tree):
    data = leaves()
    arrays, names = decode_datasets(data)
    expected = np.rint(255 * data["test"].images.permute(0, 2, 3, 1).numpy()).astype(np.uint8)
    np.testing.assert_array_equal(arrays["test"].images, expected)
    np.testing.assert_array_equal(arrays["test"].masks, data["test"].masks)
    assert names == Leaves.class_names
    # One of ours, seen as anybody's: the same arrays, and names of numbers.
    ours = {s: build_dataset("camvid", camvid_tree, s, image_size=(32, 40)) for s in SPLITS}
    anybody = {s: [ours[s][i] for i in range(len(ours[s]))] for s in SPLITS}
    arrays, names = decode_datasets(anybody)
    for split in SPLITS:
        assert arrays[split].fingerprint == load_arrays(ours[split]).fingerprint
    assert names == tuple(map(str, range(11)))


def test_the_logger_gets_the_rows_of_the_log(config, tmp_path):
    logger = TensorBoardLogger(tmp_path / "board")
    record = train(config, progress=False, model=Net(), datasets=leaves(), logger=logger)
    events = EventAccumulator(logger.log_dir).Reload()
    curves = record.result["curves"]
    for name in ("train_loss", "validation_miou"):
        logged = [(e.step, e.value) for e in events.Scalars(name)]
        wanted = list(zip(curves["epoch"], curves[name], strict=True))
        np.testing.assert_allclose(logged, wanted, rtol=1e-6)


class Coarse(Net):
    def forward(self, images):
        return super().forward(images)[..., ::4, ::4]


def _with(split, sample):
    data = {s: [part[i] for i in range(len(part))] for s, part in leaves().items()}
    data[split][1] = sample
    return data


IMAGE, MASK = torch.rand(3, 32, 40), torch.zeros(32, 40, dtype=torch.int64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "segnet"}, "model must be a torch.nn.Module, got 'segnet'"),
        ({"model": Coarse(8)}, r"model must return .* shape \(1, 8, 96, 128\) .* got \(1, 8, 24"),
        ({"model": Net(4)}, r"of shape \(1, 8, 96, 128\) .* got \(1, 4, 96, 128\)"),
        ({"datasets": {"train": [], "test": []}}, "datasets must be a dict with 'train', 'valid"),
        ({"datasets": leaves() | {"test": []}}, r"datasets\['test'\] must hold images, got none"),
        ({"datasets": leaves() | {"test": Leaves(2, size=(32, 48))}}, "images of one size"),
        ({"datasets": _with("test", (IMAGE, MASK.int()))}, r"datasets\['test'\]\[1\] must be an"),
        ({"datasets": _with("train", (IMAGE * 2 - 1, MASK))}, r"must be in \[0, 1\] \(normalis"),
        ({"datasets": _with("train", (IMAGE * 255, MASK))}, r"must be in \[0, 1\] \(normalis"),
        ({"datasets": _with("train", (IMAGE, MASK - 1))}, r"labels must be 0 ... L-1, .* got -1"),
        ({"datasets": leaves() | {"test": _with("test", (IMAGE, MASK + 7))["test"]}}, "label 7"),
        ({"logger": "tensorboard"}, "logger must be a Logger of Lightning Fabric, got 'tensor"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_training(config, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        train(config, progress=False, **given)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_settings_that_would_have_no_effect_are_refused(config, camvid_tree):
    of_network = same(config, model_params={"width": 2})
    with pytest.raises(ValueError, match="model_params must be empty where a model is given"):
        train(of_network, progress=False, model=Net())
    of_data = same(config, dataset="camvid", data_root=camvid_tree)
    with pytest.raises(ValueError, match="must be left out where datasets are given, .*camvid"):
        train(of_data, progress=False, datasets=leaves())


def test_the_record_is_json_of_plain_values(config, tmp_path):
    train(config, progress=False, model=Net(), datasets=leaves())
    stored = json.loads((tmp_path / "run" / "record.json").read_text())
    assert stored["config"]["model"].startswith("own:") and stored["config"]["loss"] == "pat"
