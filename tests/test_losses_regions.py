"""Losses on regions and sums of losses: against their library, by hand, and by their limits."""

import itertools
import math
import sys

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from test_losses import COUNTS, images_with, make_batch

from patlib import losses
from patlib.losses import build_loss

pytestmark = pytest.mark.filterwarnings("ignore:class_counts is 0")

VARIANTS = [
    ("dice", {}),
    ("jaccard", {}),
    ("tversky", {}),
    ("tversky", {"alpha": 1.0, "beta": 0.25}),
    ("lovasz", {}),
    ("mix", {}),
    ("mix", {"losses": {"pat": 1, "lovasz": 0.5}, "params": {"pat": {"temperature": 2.0}}}),
]
every_region_loss = pytest.mark.parametrize(("name", "params"), VARIANTS)


def build(name, params=None, **more):
    statistics = {"class_images": images_with(COUNTS), "num_images": 20}
    return build_loss(name, 4, COUNTS, **statistics, **(params or {}), **more)


def gradient(loss, logits, target):
    return torch.autograd.grad(loss(logits, target), logits)[0]


def reference(name, logits, target, params):
    """In NumPy, of logits (B, L, H, W) and target (B, H, W)."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = np.moveaxis(p / p.sum(1, keepdims=True), 1, -1)[target != 255]  # (P, L)
    y = target[target != 255]
    terms = []
    for c in range(p.shape[1]):
        true, q = y == c, p[:, c]
        if name == "lovasz":
            if true.any():
                terms.append(lovasz_extension(np.abs(true - q), true))
            continue
        tp, fp, fn = q[true].sum(), q[~true].sum(), (1 - q[true]).sum()
        alpha, beta = {
            "dice": (0.5, 0.5),
            "jaccard": (1, 1),
            "tversky": (params.get("alpha", 0.3), params.get("beta", 0.7)),
        }[name]
        terms.append(1 - tp / (tp + alpha * fp + beta * fn) if true.any() else 0.0)
    return np.mean(terms)


def lovasz_extension(errors, true):
    """∫ of the Jaccard loss of the pixels whose error is above t, over t: what makes it convex."""
    total, levels = 0.0, np.concatenate([[0], np.sort(errors)])
    for low, high in itertools.pairwise(levels):
        wrong = errors > low
        # IoU of the class if exactly these are wrong.
        iou = (true & ~wrong).sum() / (true | wrong).sum()
        total += (high - low) * (1 - iou)
    return total


@pytest.mark.parametrize(("name", "params"), [v for v in VARIANTS if v[0] != "mix"])
@pytest.mark.parametrize("absent", [False, True])
def test_value_matches_the_formula(name, params, absent):
    logits, target = make_batch((2, 4, 5, 6))
    if absent:
        target[target == 2] = 0
    value = build(name, params)(logits, target)
    expected = reference(name, logits.detach().numpy(), target.numpy(), params)
    rel = 1e-6 if name == "lovasz" else 1e-12  # it is computed in float32
    assert value.shape == () and value.item() == pytest.approx(expected, rel=rel)
    assert value.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("dice", smp.losses.DiceLoss("multiclass", ignore_index=255)),
        ("jaccard", smp.losses.JaccardLoss("multiclass", ignore_index=255)),
        ("tversky", smp.losses.TverskyLoss("multiclass", ignore_index=255, alpha=0.3, beta=0.7)),
        ("lovasz", smp.losses.LovaszLoss("multiclass", ignore_index=255)),
    ],
)
def test_value_and_gradient_are_those_of_the_library(name, criterion):
    logits, target = make_batch((3, 4, 5, 6), dtype=torch.float32)
    loss = build(name)
    torch.testing.assert_close(loss(logits, target), criterion(logits, target))
    torch.testing.assert_close(gradient(loss, logits, target), gradient(criterion, logits, target))


def test_tversky_between_dice_and_jaccard():
    logits, target = make_batch((2, 4, 5, 6))
    for name, half in (("dice", 0.5), ("jaccard", 1.0)):
        one, other = build(name), build("tversky", {"alpha": half, "beta": half})
        torch.testing.assert_close(one(logits, target), other(logits, target))
    # A missed pixel costs more than a wrong one by default.
    confident = torch.tensor([[[9.0, 9.0, -9.0, -9.0], [-9.0, -9.0, 9.0, 9.0]]])
    loss = build_loss("tversky", 2)
    term = loss(confident, torch.tensor([[0, 1, 1, 1]]))  # class 0: 1 FP; class 1: 1 FN
    expected = ((1 - 1 / 1.3) + (1 - 2 / 2.7)) / 2
    assert term.item() == pytest.approx(expected, abs=1e-6)


@every_region_loss
def test_perfect_logits_give_0(name, params):
    _, target = make_batch(ignored=True)
    right = torch.nn.functional.one_hot(target.where(target != 255, 0), 4).movedim(-1, 1).double()
    assert build(name, params)(1e4 * right, target).item() == pytest.approx(0, abs=1e-12)
    wrong = build(name, params)((-1e4 * right).requires_grad_(), target)
    assert wrong.isfinite() and wrong > 0.4


@every_region_loss
def test_gradcheck(name, params):
    logits, target = make_batch((2, 4, 2, 3))
    loss = build(name, params)
    float32 = "lovasz" in (name, *params.get("losses", ()))
    tolerance = {"eps": 1e-2, "atol": 2e-3, "rtol": 1e-2} if float32 else {}
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits, **tolerance)


@every_region_loss
def test_ignored_pixels_may_hold_anything(name, params):
    logits, target = make_batch()
    loss = build(name, params)
    value, grad = loss(logits, target), gradient(loss, logits, target)
    ignored = (target == 255).unsqueeze(1).expand_as(logits)
    assert (grad[ignored] == 0).all() and grad[~ignored].any()
    for content in (50.0, math.inf, math.nan):
        moved = logits.detach().masked_fill(ignored, content).requires_grad_()
        torch.testing.assert_close(loss(moved, target), value)
        bad = gradient(loss, moved, target)
        torch.testing.assert_close(bad[~ignored], grad[~ignored])
        assert name == "mix" or (bad[ignored] == 0).all()


@every_region_loss
@pytest.mark.parametrize("ignore_index", [-100, 1, 300])
def test_ignore_index_may_be_any_label(name, params, ignore_index):
    logits, target = make_batch()
    if ignore_index == 1:
        target[target == 1] = 255
    other = target.masked_fill(target == 255, ignore_index)
    value = build(name, params)(logits, target)
    moved = build(name, params, ignore_index=ignore_index)(logits, other)
    torch.testing.assert_close(moved, value)
    none = target.where(target != 255, 0)
    torch.testing.assert_close(
        build(name, params, ignore_index=None)(logits, none), build(name, params)(logits, none)
    )


@every_region_loss
def test_batch_without_valid_pixel(name, params):
    logits, target = make_batch()
    loss = build(name, params)
    target.fill_(255)
    assert loss(logits, target) == 0 and loss(logits, target).shape == ()
    assert (gradient(loss, logits, target) == 0).all()


@every_region_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, params, dtype):
    logits, target = make_batch((2, 4, 6, 7), dtype=dtype)
    exact = logits.detach().double().requires_grad_()
    loss = build(name, params)
    value, grad = loss(logits, target), gradient(loss, logits, target)
    assert value.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(value.double(), loss(exact, target), rtol=1e-5, atol=0)
    expected = gradient(loss, exact, target)
    torch.testing.assert_close(grad.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@every_region_loss
@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 7), (1, 4, 3, 5), (2, 4, 2, 3, 3)])
def test_shapes(name, params, shape):
    logits, target = make_batch(shape)
    loss = build(name, params)
    flat = logits.flatten(2) if len(shape) > 2 else logits.unsqueeze(2)
    column = loss(flat.unsqueeze(3), target.reshape(shape[0], -1, 1))
    torch.testing.assert_close(loss(logits, target), column)


@every_region_loss
def test_compiled(name, params):
    torch._dynamo.reset()
    logits, target = make_batch((2, 4, 5, 6))
    loss = build(name, params)
    compiled = torch.compile(loss, backend="eager")
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))
    torch.testing.assert_close(gradient(compiled, logits, target), gradient(loss, logits, target))


@every_region_loss
def test_function_and_module_agree(name, params):
    logits, target = make_batch()
    function = getattr(losses, f"{name}_loss")
    torch.testing.assert_close(
        function(logits, target, **params), build(name, params)(logits, target)
    )


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("dice", {"reduction": "sum"}, "reduction must be one of 'mean', got 'sum'"),
        ("mix", {"reduction": "none"}, "reduction must be one of 'mean', got 'none'"),
        ("tversky", {"alpha": 0}, "alpha must be a finite number > 0 and .* got 0"),
        ("tversky", {"beta": -1.0}, "beta must be a finite number > 0 and .* got -1.0"),
        ("jaccard", {"smooth": 1.0}, "loss 'jaccard' has no parameter 'smooth'"),
        ("lovasz", {"ignore_index": 2.0}, "ignore_index must be an integer, got 2.0"),
        ("mix", {"losses": {}}, "losses must be a number for one or more of 'ce', .*got {}"),
        ("mix", {"losses": {"cee": 1}}, "losses must be .*'ce', .*got {'cee': 1}"),
        ("mix", {"losses": {"mix": 1}}, "losses must be .*got {'mix': 1}"),
        ("mix", {"losses": ["ce"]}, r"losses must be .*got \['ce'\]"),
        ("mix", {"losses": {"ce": 0}}, r"losses\['ce'\] must be a finite number > 0 and .* got 0"),
        (
            "mix",
            {"losses": {"ce": "1"}},
            r"losses\['ce'\] must be a finite number > 0 and .* got '1'",
        ),
        ("mix", {"losses": {"ce": 1}, "params": {"pat": {}}}, "params must .*'ce', got {'pat'"),
        ("mix", {"losses": {"ce": 1}, "params": {"ce": 3}}, "params must .*got {'ce': 3}"),
        (
            "mix",
            {"losses": {"focal": 1}, "params": {"focal": {"gama": 2}}},
            "loss 'focal' has no parameter 'gama'",
        ),
    ],
)
def test_wrong_parameters(name, params, said):
    with pytest.raises(ValueError, match=said):
        build(name, params)


@every_region_loss
def test_wrong_logits_and_target(name, params):
    loss = build(name, params)
    with pytest.raises(ValueError, match="4 classes.*got 3 channels"):
        loss(torch.zeros(2, 3, 5), torch.zeros(2, 5).long())
    with pytest.raises(ValueError, match=r"target must be in .*=255, got 4"):
        loss(torch.zeros(1, 4, 3), torch.tensor([[0, 4, 1]]))
    with pytest.raises(ValueError, match="target must be int64"):
        loss(torch.zeros(1, 4, 3), torch.zeros(1, 3))


def test_a_mix_is_the_weighted_sum():
    logits, target = make_batch()
    params = {"ce": {"class_weights": "median_frequency"}, "pat": {"sizes": "dataset"}}
    mix = build("mix", {"losses": {"ce": 2, "pat": 0.5, "bms": 1}, "params": params})
    expected = (
        2 * build("ce", params["ce"])(logits, target)
        + 0.5 * build("pat", params["pat"])(logits, target)
        + build("bms")(logits, target)
    )
    torch.testing.assert_close(mix(logits, target), expected)
    default = 0.25 * build("ce")(logits, target) + 0.75 * build("jaccard")(logits, target)
    torch.testing.assert_close(build("mix")(logits, target), default)
    # A mix of losses of pixels has their reductions.
    none = build("mix", {"losses": {"ce": 2, "bms": 1}}, reduction="none")
    assert none(logits, target).shape == target.shape


def test_the_parts_of_a_mix_are_moved_and_told_of_the_training():
    mix = build("mix", {"losses": {"ldam": 1, "bms": 1}, "params": {"ldam": {"deferred": 0.5}}})
    assert {b.device.type for b in mix.half().to("meta").buffers()} == {"meta"}
    assert {b.dtype for b in mix.buffers()} == {torch.float64}
    told = [module for module in mix.modules() if hasattr(module, "progress")]
    assert told == [mix.parts["ldam"]]


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.losses", None)
    for name in ("dice", "jaccard", "tversky", "lovasz", "mix"):
        with pytest.raises(ModuleNotFoundError, match=r"segmentation-models-pytorch.*\[train\]"):
            build(name)
    build("ce")
