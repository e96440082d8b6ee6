import pytest
import torch
from torch import nn
from torch.nn import functional as F

from patlib.models import MODELS, NormalizedConv2d, build_model

every_model = pytest.mark.parametrize("name", MODELS)
SMALL = {"segnet": {"width": 4}, "attention_unet": {"width": 4}}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name, **params):
    torch.manual_seed(0)
    return build_model(name, 5, normalized_classifier=True, **SMALL.get(name, {}), **params)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_logits_are_the_cosines_of_patches_and_weights(kernel_size):
    torch.manual_seed(0)
    layer = NormalizedConv2d(6, 4, kernel_size).double()
    features = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    patches = F.unfold(features, kernel_size, padding=kernel_size // 2)  # (B, 6 k k, P)
    weights = layer.weight.flatten(1)
    expected = F.cosine_similarity(patches[:, None], weights[None, :, :, None], dim=2)
    torch.testing.assert_close(layer(features), expected.view(2, 4, 5, 7))
    # Lengths do not matter.
    with torch.no_grad():
        layer.weight *= torch.tensor([1e-3, 1.0, 50.0, 1e4], dtype=torch.float64).view(4, 1, 1, 1)
    torch.testing.assert_close(layer(1e3 * features), expected.view(2, 4, 5, 7))


def test_gradient_of_the_normalised_convolution():
    torch.manual_seed(0)
    layer = NormalizedConv2d(3, 2, 3).double()
    features = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    inputs = (features, layer.weight)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(layer, {"weight": w}, (x,)), inputs
    )


def test_a_patch_of_zeros_has_logits_of_0():
    layer = NormalizedConv2d(3, 2, 1)
    features = torch.zeros(1, 3, 4, 4, requires_grad=True)
    logits = layer(features.relu())
    assert (logits == 0).all()
    logits.sum().backward()
    assert features.grad.isfinite().all() and layer.weight.grad.isfinite().all()


@every_model
def test_every_network_can_have_one(name):
    model = build(name)
    assert isinstance(model.classifier, NormalizedConv2d) and model.classifier.bias is None
    seen = []
    model.classifier.register_forward_hook(lambda module, args, output: seen.append(output))
    logits = model(torch.rand(2, 3, 33, 47))
    assert logits.shape == (2, 5, 33, 47)
    assert torch.equal(logits, seen[0][..., :33, :47])
    assert logits.abs().max() <= 1 and (logits < 0).any()
    (logits * torch.randn(logits.shape)).sum().backward()
    assert model.classifier.weight.grad.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_the_rest_of_the_network_is_the_same(name):
    plain = build_model(name, 5, **SMALL.get(name, {})).state_dict()
    normalised = build(name).state_dict()
    missing = plain.keys() - normalised.keys()
    assert {key.rpartition(".")[2] for key in missing} == {"bias"} and len(missing) == 1
    assert {k: v.shape for k, v in normalised.items()} == {
        k: v.shape for k, v in plain.items() if k not in missing
    }


@every_model
def test_half_precision_and_meta_device(name):
    model = build(name).eval().to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
    inputs = []
    model.classifier.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16 and logits.abs().max() <= 1
    # The lengths are as exact as the dot products: what is left is their rounding.
    exact = model.classifier(inputs[0].float())
    assert (logits.float() - exact).abs().max() < 0.01
    with torch.device("meta"):
        assert build(name)(torch.rand(2, 3, 64, 64)).shape == (2, 5, 64, 64)


@torch.no_grad()
def test_export_and_compiler():
    model = build("segnet").eval()
    images = torch.rand(2, 3, 33, 47)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


@every_model
@pytest.mark.parametrize("wrong", ["yes", 1, None])
def test_wrong_value(name, wrong):
    with pytest.raises(ValueError, match=f"normalized_classifier must be one of .*got {wrong!r}"):
        build_model(name, 5, normalized_classifier=wrong)


def test_it_is_a_convolution():
    # What looks for the last convolution finds it: see patlib.gradients.
    assert issubclass(NormalizedConv2d, nn.Conv2d)
