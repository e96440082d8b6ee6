"""RunConfig refuses what is wrong, by name, when it is made."""

import dataclasses
import json
from pathlib import Path

import pytest

from patlib import RunConfig


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "pats"}, "loss='pats'.*'pat'"),
        ({"model": "resnet"}, "model='resnet'.*'segnet'"),
        ({"dataset": "imagenet"}, "dataset='imagenet'.*'synthetic'"),
        ({"loss_params": {"temprature": 20}}, "temprature.*temperature"),
        ({"loss_params": {"temperature": -1}}, "temperature"),
        ({"loss": "ce", "loss_params": {"gamma": 2}}, "gamma"),
        ({"loss_params": {"reduction": "none"}}, "loss_params=.*training sets reduction itself"),
        ({"loss_params": {"ignore_index": 0}}, "training sets ignore_index itself"),
        ({"loss_params": {"class_counts": [1, 2]}}, "training sets class_counts itself"),
        ({"loss_params": [20]}, r"loss_params=\[20\].*mapping"),
        ({"model_params": {"widht": 8}}, "widht.*width"),
        ({"model_params": {"width": 0}}, "width"),
        ({"model": "unet", "model_params": {"encoder": "resnet19"}}, "encoder.*resnet19"),
        ({"data_params": {"classes": 3}}, "'synthetic' has no parameter 'classes'.*num_classes"),
        ({"data_params": {"num_classes": 1}}, "num_classes"),
        ({"data_root": "somewhere"}, "data_root='somewhere'.*drawn"),
        ({"dataset": "camvid"}, "data_root=None.*'camvid'"),
        ({"split_scheme": "random"}, "split_scheme='random'"),
        ({"void": 255}, "void=255"),
        ({"image_size": (16, 64)}, "image_size"),
        ({"image_size": 96}, "image_size=96"),
        ({"epochs": 0}, "epochs=0.*at least 1"),
        ({"epochs": 2.5}, "epochs=2.5.*whole number"),
        ({"epochs": True}, "epochs=True"),
        ({"batch_size": "8"}, "batch_size='8'"),
        ({"learning_rate": 0}, "learning_rate=0.*greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"precision": "16"}, "precision='16'.*'bf16-mixed'"),
        ({"precision": "16-mixed", "device": "cpu"}, "precision='16-mixed'"),
        ({"device": "tpu"}, "device='tpu'.*'cuda'"),
        ({"devices": 0}, "devices=0"),
        ({"devices": 3, "device": "cpu", "batch_size": 16}, "batch_size=16.*devices=3"),
        ({"seed": -1}, "seed=-1"),
        ({"output_dir": ""}, "output_dir=''"),
    ],
)
def test_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**arguments)


def test_unknown_field_is_refused():
    with pytest.raises(TypeError, match="learning_rat"):
        RunConfig(learning_rat=0.1)


def test_goes_through_json_unchanged():
    config = RunConfig(
        dataset="camvid", data_root=Path("x"), image_size=[96, 128], loss_params={"temperature": 5}
    )
    assert config.image_size == (96, 128) and config.data_root == "x"
    assert RunConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_identity_names_the_device_that_auto_means():
    here = RunConfig(device="auto").identity()
    assert here["device"] in ("cpu", "cuda")
    if here["device"] == "cpu":
        assert here == RunConfig(device="cpu").identity()


def test_identity_leaves_out_places_only():
    config = RunConfig(output_dir="a")
    left_out = {f.name for f in dataclasses.fields(RunConfig)} - set(config.identity())
    assert left_out == {"data_root", "output_dir"}


def test_identity_names_the_parameters_that_were_left_out():
    identity = RunConfig(loss_params={"temperature": 5.0}).identity()
    expected = dict(temperature=5.0, epsilon=0.0, size_exponent=1.0)
    assert identity["loss_params"] == {
        **expected,
        "weight": "beta",
        "normalize": "images",
        "detach": False,
    }
    assert identity["model_params"] == {"width": 32, "stages": 5}
    assert identity["data_params"]["num_classes"] == 8
    whole = RunConfig(**identity)
    assert whole.identity() == identity
    same = RunConfig(loss_params={"temperature": 5, "epsilon": 0}).identity()
    assert json.dumps(same, sort_keys=True) == json.dumps(identity, sort_keys=True)
