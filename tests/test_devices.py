"""On a machine without a GPU: a tensor left on the CPU while the others are on one is found.

Under FakeTensorMode tensors have a device, a type and a shape, but no values and no memory, and an
operation on tensors of two devices is refused as on a GPU. What this cannot show:

- values: rounding, NaN, the labels out of range that a GPU asserts, ignored pixels, and the other
  side of a choice that depends on values;
- the backward pass, which PyTorch starts on the device itself, so optimisers and training steps;
- kernels: what `torch.compile` makes of the losses, cuDNN's choices, memory formats, determinism;
- memory and time, streams, `non_blocking` copies that are read too early;
- several GPUs, and the mixture of precisions under `torch.autocast` as a GPU chooses it.

Tests that need a GPU are in test_losses_paths.py and test_numbers.py, and are skipped without one.
"""

from unittest import mock

import numpy as np
import pytest
import torch
from faults import tiny_config
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from patlib import Predictor, train
from patlib.batches import draw_crops, scale_and_crop
from patlib.evaluation import count_shifted, evaluate
from patlib.losses import LOSSES, build_loss
from patlib.metrics import SegmentationMetrics
from patlib.models import MODELS, build_model

CUDA = torch.device("cuda", 0)
# How many pixels are valid is a value.
UNSEEN = {"lovasz": {"ignore_index": None}}
SMALL = {"segnet": {"width": 2, "stages": 2}, "attention_unet": {"width": 2}}


@pytest.fixture
def fake(monkeypatch):
    """A machine with a GPU, in appearance: all pixels are valid, any choice is False."""
    monkeypatch.setenv("PATLIB_COMPILE", "0")  # the compiler has its own fake tensors
    getitem = FakeTensor.__getitem__

    def chosen(tensor, index):
        if isinstance(index, FakeTensor) and index.dtype == torch.bool:
            assert index.device == tensor.device and index.shape == tensor.shape[: index.ndim]
            return tensor.flatten(0, index.ndim - 1)
        return getitem(tensor, index)

    monkeypatch.setattr(FakeTensor, "__getitem__", chosen)
    monkeypatch.setattr(torch, "bincount", lambda x, minlength: x.new_zeros(minlength))
    for name, value in {"__bool__": False, "__float__": 0.0, "item": 0}.items():
        monkeypatch.setattr(FakeTensor, name, lambda tensor, value=value: value)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def batch(size=(2, 4, 16, 16)):
    logits = torch.randn(size, device=CUDA)
    return logits, torch.randint(size[1], (size[0], *size[2:]), device=CUDA)


def test_a_tensor_left_on_the_cpu_is_found(fake):
    logits, target = batch()
    with pytest.raises(RuntimeError, match="device"):
        logits + torch.zeros(2, 4, 16, 16)
    with pytest.raises(RuntimeError, match="device"):
        torch.nn.functional.cross_entropy(logits, target.cpu())


def build(name):
    images = {"class_images": [3, 3, 2, 1], "num_images": 3}
    with torch.utils._python_dispatch._disable_current_modes():
        loss = build_loss(name, 4, class_counts=[9, 5, 2, 1], **images, **UNSEEN.get(name, {}))
    return loss.to(CUDA)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, fake):
    logits, target = batch()
    loss = build(name)(logits, target)
    assert isinstance(loss, FakeTensor) and loss.device == CUDA and loss.shape == ()


def network(name):
    with CUDA:
        return build_model(name, 4, **SMALL.get(name, {}))


@pytest.mark.parametrize("name", MODELS)
def test_networks(name, fake):
    logits = network(name)(torch.rand(2, 3, 64, 64, device=CUDA))
    assert logits.device == CUDA and logits.shape == (2, 4, 64, 64)


def test_augmentation(fake):
    image, target = torch.rand(2, 3, 32, 40, device=CUDA), batch((2, 4, 32, 40))[1]
    with torch.utils._python_dispatch._disable_current_modes():
        crops = draw_crops(torch.rand(2, 3, dtype=torch.float64), (32, 40))
        crops = mock.Mock(tolist=mock.Mock(return_value=crops.tolist()))
    image, target = scale_and_crop(image, target, crops)
    assert image.device == target.device == CUDA and target.shape == (2, 32, 40)


def test_shifted_counts(fake):
    logits, target = batch()
    counts = count_shifted(logits, target, torch.zeros(3, 4), 4)
    assert counts.device == CUDA and counts.shape == (2, 3, 2, 4)


@pytest.fixture
def on_the_host(monkeypatch):
    """What is read from fake tensors: zeros, if they have been copied to the CPU."""

    def numpy(tensor):
        assert tensor.device.type == "cpu"
        kind = torch.empty((), dtype=tensor.dtype, device="meta").dtype
        return np.zeros([int(n) for n in tensor.shape], str(kind).removeprefix("torch."))

    monkeypatch.setattr(FakeTensor, "numpy", numpy, raising=False)
    monkeypatch.setattr(FakeTensor, "tolist", lambda t: list(range(t.numel())), raising=False)


@pytest.mark.filterwarnings("ignore")
def test_evaluation(fake, on_the_host, monkeypatch):
    model = network("segnet")
    with CUDA:
        metrics = SegmentationMetrics(4)
    target = batch((3, 4, 32, 40))[1]
    images = mock.MagicMock(masks=target, __len__=lambda self: 3)
    images.batch = lambda index: (torch.rand(3, 3, 32, 40, device=CUDA), target)
    # Which images a batch has is decided on the CPU, with numbers.
    arange = torch.arange
    index = mock.Mock(tolist=lambda: [0, 1, 2])
    of_images = mock.Mock(split=lambda size: [index])
    monkeypatch.setattr(torch, "arange", lambda *n, **o: arange(*n, **o) if o else of_images)
    # NumPy on the CPU, of what the copied counts hold.
    with mock.patch("patlib.evaluation.compute_image_scores", lambda counts: {}):
        found = evaluate(
            model, images, 3, metrics, shown=[0], shifts=torch.zeros(2, 4), boundaries=True
        )
    assert all(state.device == CUDA for state in metrics.metric_state.values())
    assert found.counts.shape == (3, 3, 4) and found.shifted.shape == (2, 3, 2, 4)


def test_prediction(camvid_tree, tmp_path, on_the_host):
    config = tiny_config(camvid_tree, tmp_path / "run", epochs=1)
    train(config, progress=False)
    predictor = Predictor(tmp_path / "run", device="cpu", prior_shift={"tau": 1.0})
    image = Image.fromarray(np.zeros((50, 60, 3), np.uint8))
    with FakeTensorMode(allow_non_fake_inputs=True):
        predictor.device = CUDA
        with CUDA:
            predictor.model = build_model(config.model, 11, **config.model_params).eval()
        predictor.shift = predictor.shift.to(CUDA)
        (labels,) = predictor([image])
    assert labels.shape == (50, 60) and labels.dtype == np.uint8
