"""The losses against independent references, and what must hold of every loss."""

import doctest
import importlib
import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from patlib import losses
from patlib.losses import LOSSES, _checks, build_loss
from patlib.losses._region import RegionLoss
from patlib.losses.blv import blv_variation, draw_noise
from patlib.losses.cb import cb_weights
from patlib.losses.ldam import ldam_margins

COUNTS = [5_000_000, 120_000, 900, 0]  # the last class has no pixel
ONES = [1, 1, 1, 1]

# Every loss in more than its default form: (name, parameters).
VARIANTS = [
    ("ce", {}),
    ("ce", {"class_weights": "inverse"}),
    ("ce", {"class_weights": "median_frequency"}),
    ("ce", {"class_weights": "enet"}),
    ("ce", {"class_weights": [0.5, 2.0, 3.0, 1.0]}),
    ("focal", {"gamma": 2.0}),
    ("focal", {"gamma": 0.5}),
    ("focal", {"gamma": 2.0, "class_weights": "enet"}),
    ("cb", {}),
    ("cb", {"beta": 0.99}),
    ("cb_focal", {"gamma": 2.0}),
    ("cb_focal", {"gamma": 0.5, "beta": 0.999}),
    ("bms", {}),
    ("bms", {"tau": 0.5}),
    ("ldam", {}),
    ("ldam", {"max_margin": 0.3, "scale": 7.0}),
    ("blv", {}),
    ("blv", {"noise": "uniform", "sigma": 2.0}),
    ("blv", {"noise": "xavier"}),
    ("pat", {}),
    ("pat", {"temperature": 0.3, "epsilon": 0.1, "size_exponent": 0.5}),
    ("pat", {"temperature": 0.3, "normalize": "weights"}),
    ("pat", {"temperature": 0.3, "detach": True}),
    ("pat", {"temperature": 0.3, "detach": True, "normalize": "weights", "size_exponent": 0.0}),
    ("pat", {"weight": "none"}),
    ("pat", {"weight": "none", "normalize": "weights"}),
    ("pat", {"temperature": 0.3, "sizes": "dataset"}),
    ("pat", {"temperature": 0.3, "presence_exponent": 1.5, "normalize": "weights"}),
    ("pat", {"sizes": "dataset", "presence_exponent": 0.5, "size_exponent": 0.5}),
]
IDS = ["-".join([name, *(f"{k}={v}" for k, v in params.items())]) for name, params in VARIANTS]
every_loss = pytest.mark.parametrize(("name", "params"), VARIANTS, ids=IDS)
# Losses of single pixels; the others are those on regions and their mix: test_losses_regions.py.
PIXEL = [n for n, loss in LOSSES.items() if n != "mix" and not issubclass(loss, RegionLoss)]
NEED_COUNTS = [n for n in PIXEL if "num_classes" not in inspect.signature(LOSSES[n]).parameters]

pytestmark = pytest.mark.filterwarnings("ignore:class_counts is 0")


NUM_IMAGES = 20


def images_with(counts):
    """Of 20 images, those that hold each class: 19, 15, 11, 7, ...; 0 for a class of 0 pixels."""
    return [max(19 - 4 * c, 1) if n > 0 else 0 for c, n in enumerate(counts)]


def build(name, params=None, counts=COUNTS, **more):
    statistics = {"class_images": images_with(counts), "num_images": NUM_IMAGES}
    return build_loss(
        name, len(counts), class_counts=counts, **statistics, **(params or {}), **more
    )


def seeded(loss, logits, target):
    """The loss with the same noise every time (blv draws from the global generator)."""
    torch.manual_seed(7)
    return loss(logits, target)


def without_noise(name, params):
    """The parameters, with blv's noise switched off in training mode too."""
    return {"noise": "gaussian", "sigma": 0.0} if name == "blv" else params


def make_batch(shape=(2, 4, 3, 4), ignored=True, scale=2.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randint(shape[1], shape[:1] + shape[2:], generator=generator)
    if ignored:
        target[torch.rand(target.shape, generator=generator) < 0.25] = 255
        target.flatten()[0] = 255
    return logits.to(dtype).requires_grad_(), target


def gradient(loss, logits, target):
    (grad,) = torch.autograd.grad(seeded(loss, logits, target).sum(), logits)
    return grad


# ------------------------------------------------------------------ references, in NumPy
# One pixel at a time, in plain arithmetic. `frozen` are the logits to take where no gradient flows.


def softmax(x):
    e = [math.exp(v - max(x)) for v in x]
    return [v / sum(e) for v in e]


def filled(counts):
    return [n if n > 0 else min(m for m in counts if m > 0) for n in counts]


def effective_number_weights(counts, beta):
    # 1 + b + b² + ... has n terms and the value (1 - bⁿ) / (1 - b): no cancellation to think of.
    if beta is None:
        log_b, rest = math.log1p(-1 / sum(counts)), 1 / sum(counts)
    else:
        log_b, rest = math.log(beta), 1 - beta
    inverse = [rest / -math.expm1(n * log_b) for n in filled(counts)]
    present = [w for w, n in zip(inverse, counts, strict=True) if n > 0]
    return [len(present) * w / sum(present) for w in inverse]


def rarest_for_absent(values, counts):
    return [v if n > 0 else min(w for w, m in zip(values, counts, strict=True) if m > 0)
            for v, n in zip(values, counts, strict=True)]  # fmt: skip


def reference_class_weight(weights, y, counts):
    if weights is None:
        return 1.0
    if not isinstance(weights, str):
        return weights[y]
    if weights == "median_frequency":
        # All images have the same number of pixels, whatever it is.
        held = zip(counts, images_with(counts), strict=True)
        frequency = [n / (7 * m) if m else 0 for n, m in held]
        median = np.median([f for f in frequency if f > 0])
        return median / rarest_for_absent(frequency, counts)[y]
    n = filled(counts)[y]
    if weights == "inverse":
        return sum(counts) / n / sum(m > 0 for m in counts)
    return 1 / math.log(1.02 + n / sum(counts))


def reference_pixel(name, x, frozen, y, counts, size, drawn, p):
    """The loss of one pixel of logits x and class y, `size` pixels of which are in its image."""
    prob = softmax(x)[y]
    ce = -math.log(prob)
    weight = reference_class_weight(p.get("class_weights"), y, counts)
    if name == "ce":
        return weight * ce
    if name == "focal":
        return weight * (1 - prob) ** p.get("gamma", 2.0) * ce
    if name == "cb":
        return effective_number_weights(counts, p.get("beta"))[y] * ce
    if name == "cb_focal":
        weight = effective_number_weights(counts, p.get("beta"))[y]
        return weight * (1 - prob) ** p.get("gamma", 2.0) * ce
    if name == "bms":
        balanced = [
            n ** p.get("tau", 1.0) * math.exp(v) for n, v in zip(filled(counts), x, strict=True)
        ]
        return -math.log(balanced[y] / sum(balanced))
    if name == "ldam":
        margins = [1 / math.sqrt(math.sqrt(n)) for n in filled(counts)]
        margins = [m * p.get("max_margin", 0.5) / max(margins) for m in margins]
        z = [p.get("scale", 20.0) * (v - (margins[c] if c == y else 0)) for c, v in enumerate(x)]
        return math.log(sum(math.exp(v - max(z)) for v in z)) + max(z) - z[y]
    if name == "blv":
        f = [math.log(sum(counts) / n) for n in filled(counts)]
        z = [v + min(abs(d), 1) * fc / max(f) for v, d, fc in zip(x, drawn, f, strict=True)]
        return -math.log(softmax(z)[y])
    if name == "pat":
        return reference_pat_weight(x, frozen, y, counts, size, p) * ce
    raise AssertionError(name)


def reference_pat_weight(x, frozen, y, counts, size, p):
    prob = softmax(frozen if p.get("detach", False) else x)[y]
    if p.get("weight", "beta") == "none":
        beta = 1.0
    else:
        beta = 1 / math.exp((prob - 1 + p.get("epsilon", 0.0)) / p.get("temperature", 20.0))
    if p.get("sizes") == "dataset":
        size = filled(counts)[y] / NUM_IMAGES
    presence = rarest_for_absent(images_with(counts), counts)[y] / NUM_IMAGES
    powers = size ** p.get("size_exponent", 1.0) * presence ** p.get("presence_exponent", 0.0)
    return beta / powers


def reference(name, logits, target, params, counts=COUNTS, noise=None, frozen=None):
    """The mean loss of NumPy logits (B, L, H, W) and target (B, H, W)."""
    frozen = logits if frozen is None else frozen
    total, weights = 0.0, 0.0
    for i, j, k in np.argwhere(target != 255):
        y = target[i, j, k]
        size = int((target[i] == y).sum())
        pixel = (logits[i, :, j, k].tolist(), frozen[i, :, j, k].tolist(), y)
        drawn = None if noise is None else noise[i, :, j, k].tolist()
        total += reference_pixel(name, *pixel, counts, size, drawn, params)
        if name == "pat" and params.get("normalize") == "weights":
            weights += reference_pat_weight(pixel[1], pixel[1], y, counts, size, params)
    if name != "pat":
        return total / (target != 255).sum()
    return total / (weights if params.get("normalize") == "weights" else len(logits))


def numeric_gradient(function, x, step=1e-5):
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        grad[index] = (function(up) - function(down)) / (2 * step)
    return grad


@every_loss
def test_value_and_gradient_match_the_reference(name, params, monkeypatch):
    logits, target = make_batch()
    # Beyond ±1 too, so that clamp and absolute value show.
    noise = 1.5 * np.random.default_rng(1).standard_normal(logits.shape)
    monkeypatch.setattr(losses.blv, "draw_noise", lambda *_: torch.from_numpy(noise.copy()))
    value = build(name, params)(logits, target)
    value.backward()

    x, t = logits.detach().numpy(), target.numpy()
    np.testing.assert_allclose(value.item(), reference(name, x, t, params, noise=noise), rtol=1e-12)
    expected = numeric_gradient(
        lambda moved: reference(name, moved, t, params, noise=noise, frozen=x), x
    )
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=2e-9 * np.abs(expected).max())


@every_loss
def test_function_and_module_agree(name, params):
    logits, target = make_batch()
    function = getattr(losses, f"{name}_loss")
    args = (COUNTS,) if name in NEED_COUNTS else ()
    # Where a Module makes weights of the classes, the function takes the weights themselves.
    weights = [b for b in build(name, params).buffers() if name not in NEED_COUNTS]
    own = {k: v for k, v in params.items() if k not in ("sizes", "presence_exponent")}
    if weights:
        own["class_weights"] = weights[0]
    if params.get("sizes") == "dataset":
        own["size_exponent"] = 0.0  # they are in the weights
    for reduction in ("mean", "sum", "none"):
        module = build(name, params, reduction=reduction)
        value = seeded(
            lambda x, t, r=reduction: function(x, t, *args, reduction=r, **own), logits, target
        )
        torch.testing.assert_close(seeded(module, logits, target), value, rtol=1e-14, atol=0)


# With a detached part the gradient is not that of the value: left to the reference above.
WHOLE = [v for v in VARIANTS if not (v[1].get("detach") or v[1].get("normalize") == "weights")]


@pytest.mark.parametrize(("name", "params"), WHOLE)
def test_gradcheck(name, params):
    logits, target = make_batch((2, 4, 2, 2))
    loss = build(name, params)
    assert torch.autograd.gradcheck(lambda x: seeded(loss, x, target), logits)


# ------------------------------------------------------------------ what holds of every loss


@every_loss
def test_ignored_pixels_do_nothing(name, params):
    logits, target = make_batch()
    ignored = (target == 255).unsqueeze(1).expand_as(logits)
    moved = torch.where(ignored, 50 * torch.randn_like(logits), logits).detach().requires_grad_()
    loss = build(name, params)
    value, grad = seeded(loss, logits, target), gradient(loss, logits, target)
    assert ignored.any() and not ignored.all()
    assert torch.equal(seeded(loss, moved, target), value)
    assert torch.equal(gradient(loss, moved, target), grad)
    assert (grad[ignored] == 0).all() and (grad[~ignored] != 0).any()
    none = build(name, params, reduction="none")
    assert (seeded(none, logits, target)[target == 255] == 0).all()


@every_loss
@pytest.mark.parametrize("ignore_index", [-100, 1])
def test_ignore_index_may_be_any_label(name, params, ignore_index):
    logits, target = make_batch()
    if ignore_index == 1:
        target[target == 1] = 255
    other = target.masked_fill(target == 255, ignore_index)
    value = seeded(build(name, params), logits, target)
    assert torch.equal(seeded(build(name, params, ignore_index=ignore_index), logits, other), value)


@every_loss
def test_reductions(name, params):
    logits, target = make_batch()
    none, total, mean = (
        seeded(build(name, params, reduction=reduction), logits, target)
        for reduction in ("none", "sum", "mean")
    )
    assert none.shape == target.shape
    assert (none[target == 255] == 0).all() and (none > 0).any()
    torch.testing.assert_close(none.sum(), total)
    if name != "pat":
        divisor = (target != 255).sum()
    elif params.get("normalize") == "weights":
        ce = build("ce", reduction="none")(logits, target)
        divisor = (none / ce)[target != 255].sum()  # weight = weighted loss / cross-entropy
    else:
        divisor = len(logits)
    torch.testing.assert_close(total / divisor, mean)


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_batch_without_valid_pixel(name, params, reduction):
    logits, target = make_batch()
    target.fill_(255)
    loss = build(name, params, reduction=reduction)
    assert (loss(logits, target) == 0).all()
    assert (gradient(loss, logits, target) == 0).all()


@every_loss
def test_image_without_valid_pixel_counts_as_an_image(name, params):
    logits, target = make_batch()
    target[1] = 255
    loss = build(name, without_noise(name, params))
    both, one = loss(logits, target), loss(logits[:1], target[:1])
    per_image = name == "pat" and params.get("normalize") != "weights"
    torch.testing.assert_close(both, one / 2 if per_image else one)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_logits_stay_finite(name, params, dtype):
    _, target = make_batch()
    sign = torch.randint(2, (2, 4, 3, 4), generator=torch.Generator().manual_seed(3)) * 2 - 1
    right = torch.nn.functional.one_hot(target.where(target != 255, 0), 4).movedim(-1, 1) * 2 - 1
    for pattern in (sign, right, -right):
        logits = (1e4 * pattern).to(dtype).requires_grad_()
        loss = build(name, params)
        assert seeded(loss, logits, target).isfinite()
        assert gradient(loss, logits, target).isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, params, dtype):
    logits, target = make_batch(dtype=dtype)
    exact = logits.detach().double().requires_grad_()
    loss = build(name, without_noise(name, params))
    value = loss(logits, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(exact, target), rtol=2e-6, atol=0)
    grad = gradient(loss, logits, target)
    expected = gradient(loss, exact, target)
    assert grad.dtype == dtype
    # float16 is subnormal below 6e-5 and has steps of 6e-8 there.
    torch.testing.assert_close(grad.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@every_loss
def test_float32_is_near_float64(name, params):
    logits, target = make_batch((2, 4, 24, 24), dtype=torch.float32)
    exact = logits.detach().double().requires_grad_()
    loss = build(name, without_noise(name, params))
    value = loss(logits, target)
    assert value.dtype == torch.float32 and loss(exact, target).dtype == torch.float64
    torch.testing.assert_close(value.double(), loss(exact, target), rtol=2e-6, atol=0)
    grad, expected = gradient(loss, logits, target), gradient(loss, exact, target)
    torch.testing.assert_close(grad.double(), expected, rtol=0, atol=1e-5 * expected.abs().max())


@every_loss
def test_autocast(name, params):
    convolution = torch.nn.Conv2d(3, 4, 1)
    image, target = torch.randn(2, 3, 5, 6), make_batch((2, 4, 5, 6))[1]
    with torch.autocast("cpu", torch.bfloat16):
        logits = convolution(image)
        value = seeded(build(name, params), logits, target)
    assert logits.dtype == torch.bfloat16 and value.dtype == torch.float32
    plain = seeded(build(name, params), logits.detach().float(), target)
    torch.testing.assert_close(value, plain)
    value.backward()
    assert convolution.weight.grad.isfinite().all() and (convolution.weight.grad != 0).any()


@every_loss
@pytest.mark.parametrize("shape", [(3, 4), (1, 4, 1, 1), (2, 4, 7), (1, 4, 3, 5), (2, 4, 2, 3, 3)])
def test_shapes(name, params, shape):
    logits, target = make_batch(shape)
    loss = build(name, params, reduction="none")
    value = seeded(loss, logits, target)
    assert value.shape == target.shape
    # The same pixels in a column give the same losses.
    flat = logits.flatten(2) if len(shape) > 2 else logits.unsqueeze(2)
    column = seeded(loss, flat.unsqueeze(3), target.reshape(shape[0], -1, 1))
    torch.testing.assert_close(column.reshape(target.shape), value)


@every_loss
def test_empty_batch(name, params):
    logits = torch.zeros(0, 4, 3, 3, requires_grad=True)
    value = build(name, params)(logits, torch.zeros(0, 3, 3, dtype=torch.int64))
    assert value == 0


@every_loss
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided", "expanded"])
def test_memory_layouts(name, params, layout):
    logits, target = make_batch((2, 4, 6, 8))
    base = logits.detach()
    if layout == "channels_last":
        other = base.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        other, target = base.mT.contiguous().mT, target.mT.contiguous().mT
    elif layout == "strided":
        other = torch.stack([base, base], -1)[..., 0]
        target = torch.stack([target, target], -1)[..., 0]
    else:
        base = base[:1].expand(2, -1, -1, -1).contiguous()
        other = base[:1].expand(2, -1, -1, -1)
        target = target[:1].expand(2, -1, -1)
    assert not (other.is_contiguous() and target.is_contiguous())
    loss = build(name, without_noise(name, params))
    base, other = base.requires_grad_(), other.requires_grad_()
    torch.testing.assert_close(loss(other, target), loss(base, target.contiguous()))
    torch.testing.assert_close(
        gradient(loss, other, target), gradient(loss, base, target.contiguous())
    )


@every_loss
def test_inputs_are_left_alone(name, params):
    logits, target = make_batch()
    before = logits.detach().clone(), target.clone()
    build(name, params)(logits, target).backward()
    assert torch.equal(logits, before[0]) and torch.equal(target, before[1])


@pytest.mark.parametrize("noise", ["gaussian", "uniform", "xavier"])
def test_noise_of_a_compiled_loss(noise):
    name, params = "blv", {"noise": noise}
    logits, target = make_batch()
    loss = build(name, params)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(seeded(compiled, logits, target), seeded(loss, logits, target))


# ------------------------------------------------------------------ one loss as another


def same(loss, other, **batch):
    logits, target = make_batch((2, 4, 5, 6), **batch)
    torch.testing.assert_close(
        seeded(loss, logits, target), seeded(other, logits, target), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        gradient(loss, logits, target), gradient(other, logits, target), rtol=1e-10, atol=1e-14
    )


def test_ce_is_torch_cross_entropy():
    same(build("ce"), torch.nn.CrossEntropyLoss(ignore_index=255))


@pytest.mark.parametrize("counts", [ONES, [700, 700, 700, 700]])
def test_equal_counts_make_cross_entropy(counts):
    same(build("cb", counts=counts), build("ce"))
    same(build("bms", counts=counts), build("ce"))
    same(build("cb_focal", counts=counts), build("focal"))
    # All margins are the largest.
    shifted = build("ldam", {"scale": 1.0, "max_margin": 0.5}, counts=counts)
    logits, target = make_batch(ignored=False)
    lower = logits - 0.5 * torch.nn.functional.one_hot(target, 4).movedim(-1, 1)
    torch.testing.assert_close(shifted(logits, target), build("ce")(lower, target))


def test_parameters_that_make_cross_entropy():
    same(build("focal", {"gamma": 0.0}), build("ce"))
    same(build("cb_focal", {"gamma": 0.0}), build("cb"))
    same(build("cb", {"beta": 0.0}), build("ce"))
    same(build("ldam", {"max_margin": 0.0, "scale": 1.0}), build("ce"))
    same(build("blv", {"sigma": 0.0}), build("ce"))
    same(build("blv", {"sigma": 0.0, "noise": "uniform"}), build("ce"))
    for noise in ("gaussian", "uniform", "xavier"):
        same(build("blv", {"noise": noise}).eval(), build("ce"))
    same(
        build("pat", {"size_exponent": 0.0, "weight": "none", "normalize": "weights"}), build("ce")
    )


def test_pat_without_beta_is_the_sum_of_class_means():
    logits, target = make_batch((3, 4, 5, 6))
    ce = build("ce", reduction="none")(logits, target)
    means = [
        pixels[labels == label].mean()
        for pixels, labels in zip(ce, target, strict=True)
        for label in labels.unique()
        if label != 255
    ]
    assert len(means) > 3
    value = build("pat", {"weight": "none"})(logits, target)
    torch.testing.assert_close(value, torch.stack(means).sum() / 3)
    value = build("pat", {"weight": "none", "normalize": "weights"})(logits, target)
    torch.testing.assert_close(value, torch.stack(means).mean())


def test_pat_temperature_and_epsilon():
    same(build("pat", {"temperature": 1e15}), build("pat", {"weight": "none"}))
    logits, target = make_batch()
    base = build("pat", {"temperature": 2.0})(logits, target)
    moved = build("pat", {"temperature": 2.0, "epsilon": 0.7})(logits, target)
    torch.testing.assert_close(moved, base * math.exp(-0.35))
    # At the paper's T = 20 the weight lies between 1 and exp(1/20).
    ratio = build("pat")(logits, target) / build("pat", {"weight": "none"})(logits, target)
    assert 1 < ratio < math.exp(1 / 20)


def test_pat_detach_changes_the_gradient_only():
    logits, target = make_batch()
    through, stopped = (build("pat", {"temperature": 0.5, "detach": d}) for d in (False, True))
    assert torch.equal(through(logits, target), stopped(logits, target))
    grads = [gradient(loss, logits, target) for loss in (through, stopped)]
    assert (grads[0] - grads[1]).abs().max() > 1e-3


def test_pat_class_sizes_above_the_float32_integers():
    # 2**24 + 2 pixels counted one by one in float32 stop at 2**24.
    counts = 2**24 + 2
    target = torch.zeros(1, counts, dtype=torch.int64)
    logits = torch.zeros(1, 1, 1).expand(1, 1, counts)
    sizes = _checks.check_batch(logits, target, 255, "mean").class_sizes()
    weights = losses.pat.size_weights(sizes, 1.0, torch.float32)
    assert weights[0, 0] == 1 / torch.tensor(counts, dtype=torch.float32)


# ------------------------------------------------------------------ class counts


@pytest.mark.parametrize("name", NEED_COUNTS)
def test_absent_class_is_treated_as_the_rarest(name):
    with pytest.warns(UserWarning, match="class_counts is 0 for class 1, 3: .* rarest") as warned:
        loss = build(name, counts=[9_000_000, 0, 60_000, 0])
    assert len(warned) == 1
    (constants,) = loss.buffers()
    assert constants.isfinite().all()
    assert constants[1] == constants[2] == constants[3]
    # The classes that have pixels are treated as if there were no other.
    (alone,) = build(name, counts=[9_000_000, 60_000]).buffers()
    torch.testing.assert_close(constants[[0, 2]], alone)


def test_class_counts_that_are_all_above_0_warn_of_nothing(recwarn):
    for name in NEED_COUNTS:
        build(name, counts=[9, 5, 1, 0.5])
    assert not recwarn.list


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_class_counts_of_any_kind(kind):
    logits, target = make_batch()
    for name in set(NEED_COUNTS) - {"blv"}:
        value = build(name)(logits, target)
        assert torch.equal(build_loss(name, 4, class_counts=kind(COUNTS))(logits, target), value)


def test_class_counts_are_float64_throughout():
    # 2**24 + 1 is no float32.
    counts = [2.0**24 + 1, 2.0**24]
    assert build("bms", counts=counts).log_counts[0] == math.log(2**24 + 1)


def test_cb_weights_of_pixel_counts():
    # With a billion pixels b = 1 - 1e-9 is 1 in float32; E_c must not collapse.
    weights = cb_weights([999_000_000, 999_000, 1_000])
    effective = np.array([-np.expm1(-n / 1e9) * 1e9 for n in (999_000_000, 999_000, 1_000)])
    expected = 3 / effective / (1 / effective).sum()
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-8)
    # The image-count default of the original makes all classes equal.
    np.testing.assert_allclose(cb_weights([999_000_000, 999_000, 200_000], 0.9999), 1, rtol=1e-8)
    # Small enough for the sum 1 + b + ... + b^(n-1) itself.
    direct = np.array([1 / sum(0.9**k for k in range(n)) for n in (50, 7, 1)])
    np.testing.assert_allclose(cb_weights([50, 7, 1], 0.9), 3 * direct / direct.sum(), rtol=1e-12)


def test_ldam_margins():
    np.testing.assert_allclose(ldam_margins([160_000, 10_000, 625]), [0.125, 0.25, 0.5])


def test_blv_variation():
    share = blv_variation([90, 9, 1])
    np.testing.assert_allclose(share, np.log([100 / 90, 100 / 9, 100]) / np.log(100))
    assert blv_variation([12]).item() == 0


def test_blv_with_one_class():
    loss = build("blv", counts=[12])
    value = loss(torch.randn(2, 1, 3, 3), torch.zeros(2, 3, 3, dtype=torch.int64))
    assert value == 0


@pytest.mark.parametrize(
    ("noise", "std"), [("gaussian", 0.4), ("uniform", 0.4 / math.sqrt(3)), ("xavier", 0.5)]
)
def test_blv_noise(noise, std):
    torch.manual_seed(0)
    drawn = draw_noise(torch.zeros(4, 4, 100, 100), noise, sigma=0.4)
    assert abs(drawn.mean()) < 0.005
    assert drawn.std().item() == pytest.approx(std, rel=0.01)
    if noise == "uniform":
        assert 0.399 < drawn.max() <= 0.4 and -0.4 <= drawn.min() < -0.399
    else:
        # Normal: 68.3 % within one standard deviation.
        within = (drawn.abs() < std).double().mean().item()
        assert within == pytest.approx(0.6827, abs=0.005)


def test_blv_varies_in_training_only():
    logits, target = make_batch()
    loss = build("blv")
    torch.manual_seed(0)
    assert loss(logits, target) != loss(logits, target)
    loss.eval()
    assert loss(logits, target) == loss(logits, target)


# ------------------------------------------------------------------ Modules


@pytest.mark.parametrize("name", NEED_COUNTS)
def test_constants_follow_the_device_but_keep_their_precision(name):
    loss = build(name)
    (before,) = (buffer.clone() for buffer in loss.buffers())
    for cast in (loss.half, loss.bfloat16, loss.float, lambda: loss.to("cpu", torch.float16)):
        assert cast() is loss
        (after,) = loss.buffers()
        assert after.dtype == torch.float64 and torch.equal(after, before)
    (meta,) = loss.to("meta").buffers()
    assert meta.device.type == "meta"


@pytest.mark.parametrize("name", NEED_COUNTS)
def test_a_loaded_state_does_not_change_the_constants(name):
    loss, other = build(name), build(name, counts=[1, 2, 3, 4])
    (before,) = (buffer.clone() for buffer in loss.buffers())
    loss.load_state_dict(other.state_dict())
    assert torch.equal(next(loss.buffers()), before)


@every_loss
def test_repr_shows_the_parameters(name, params):
    shown = repr(build(name, params))
    for key, value in params.items():
        assert f"{key}={value!r}" in shown


def test_parameters_are_named():
    # build_loss("pat", 13) is for 13 classes: PATLoss(13) must not mean a temperature of 13.
    for loss in LOSSES.values():
        given = inspect.signature(loss).parameters.values()
        named = {p.name for p in given if p.kind != p.KEYWORD_ONLY}
        assert named <= {"class_counts", "losses", "params"}


def test_losses_and_exports():
    assert {name for name, _ in VARIANTS} == set(PIXEL)
    for attribute in ("label", "color", "marker"):  # figures can tell the losses apart
        assert len({getattr(loss, attribute) for loss in LOSSES.values()}) == len(LOSSES)
    # The name that segmentation_models_pytorch's TrainEpoch logs.
    assert build("pat").__name__ == "PATLoss" == losses.PATLoss.__name__
    for name in losses.__all__:
        assert hasattr(losses, name)


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in LOSSES)])
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(f"patlib.losses{module}"))
    assert result.attempted > 0 and result.failed == 0


# ------------------------------------------------------------------ the released code
# Where it computes the same thing: its values are those of another implementation.

CASES = json.loads((Path(__file__).parent / "data/released_code_oracle.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=["4 classes", "3 classes"])
@pytest.mark.parametrize("name", ["ce", "focal", "cb", "cb_focal", "ldam"])
def test_released_code_agrees(case, name):
    logits = torch.tensor(case["logits"], dtype=torch.float64, requires_grad=True)
    target = torch.tensor(case["target"])
    num_classes = logits.shape[1]
    # It counts in the batch.
    counts = target.flatten().bincount(minlength=num_classes).double()
    tolerance, factor = 1e-9, 1.0
    if name == "ce":
        released, loss = "cross_entropy", build_loss("ce", num_classes)
    elif name == "focal":
        # Mean over the one-hot target's channels too.
        released, loss, factor = "focal_gamma2", build_loss("focal", num_classes), 1 / num_classes
    elif name == "ldam":
        released = "ldam_m0.5_s30"
        loss = build_loss("ldam", num_classes, class_counts=counts + 1e-4, scale=30.0)
        tolerance = 1e-7  # its margins are float32
    else:
        released = {"cb": "class_balanced", "cb_focal": "cb_focal_gamma2"}[name]
        # Its weights 1 / E_c are not scaled, and have 1e-6 added to 1 - b^n_c.
        b = 1 - 1 / target.numel()
        loss = build_loss(name, num_classes, class_counts=counts, beta=b)
        factor = ((1 - b) / (1 - b ** counts[counts > 0])).mean()
        tolerance = 3e-5
    released = case["released"][released]
    value = factor * loss(logits, target)
    (grad,) = torch.autograd.grad(value, logits)
    np.testing.assert_allclose(value.item(), released["loss"], rtol=tolerance)
    expected = np.array(released["grad"])
    np.testing.assert_allclose(grad, expected, atol=tolerance * np.abs(expected).max())
