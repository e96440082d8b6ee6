"""Extreme numbers: types, the largest logits, few pixels, many classes, parts of a batch.

The references are those of test_losses.py and test_losses_regions.py, one pixel at a time in
Python's float64. Rounding: EPS of float32 is 1.2e-7; a loss of float32 or less is within 1e-5 of
the reference, one of float64 within 1e-12.
"""

import multiprocessing
import socket
import warnings

import numpy as np
import pytest
import test_losses
import test_losses_regions
import torch
from faults import CHAOS

from patlib.losses import LOSSES, build_loss
from patlib.losses._checks import check_labels
from patlib.losses._region import RegionLoss

pytestmark = pytest.mark.filterwarnings("ignore:class_counts is 0")
SINGLE = [name for name in LOSSES if name != "mix"]
REGION = [name for name in SINGLE if issubclass(LOSSES[name], RegionLoss)]
WITHOUT_NOISE = {"blv": {"noise": "gaussian", "sigma": 0.0}}
every_loss = pytest.mark.parametrize("name", SINGLE)
every_type = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)


def build(name, counts, **params):
    images = [min(n, 5) for n in counts]
    statistics = dict(class_counts=counts, class_images=images, num_images=5)
    return build_loss(name, len(counts), **statistics, **WITHOUT_NOISE.get(name, {}), **params)


def reference(name, logits, target, counts):
    logits, target = logits.detach().double().numpy(), target.numpy()
    if name in REGION:
        return test_losses_regions.reference(name, logits, target, {})
    # What cannot be computed as written, because it would overflow, can be after this shift.
    logits = logits - logits.max(1, keepdims=True)
    noise = np.zeros_like(logits) if name == "blv" else None
    return test_losses.reference(name, logits, target, {}, counts, noise)


def check(name, logits, target, counts, **params):
    """Loss and gradient are finite, and the loss is that of the reference."""
    logits = logits.requires_grad_()
    loss = build(name, counts, **params)(logits, target)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    # The losses of Lovász are computed in float32 always.
    exact = logits.dtype == torch.float64 and name != "lovasz"
    expected = reference(name, logits, target, counts)
    assert loss.item() == pytest.approx(expected, rel=1e-12 if exact else 1e-5, abs=1e-12)


@every_loss
@every_type
@pytest.mark.parametrize("size", [1.0, 40.0])
def test_types(name, dtype, size):
    logits, target = test_losses.make_batch((2, 3, 4, 4), dtype=torch.float64, scale=size)
    check(name, logits.detach().to(dtype), target, [50, 20, 5])


def largest(dtype, share):
    """Logits of which the largest is this share of the type's largest, of both signs."""
    _, target = test_losses.make_batch((2, 3, 4, 4))
    logits = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double() - 0.5
    logits = logits / logits.abs().max()
    logits[0, :, 0, 1], target[0, 0, 1] = torch.tensor([1.0, -1.0, 0.5]), 1
    return (logits * (share * torch.finfo(dtype).max)).to(dtype), target


@every_loss
@every_type
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_largest_logits(name, dtype, reduction):
    """What does not fit the type of the loss is its largest number; the gradient is exact."""
    if name in REGION and reduction != "mean":
        return
    logits, target = largest(dtype, 1)
    assert logits.max() == torch.finfo(dtype).max
    logits = logits.requires_grad_()
    loss = build(name, [50, 20, 5], reduction=reduction)(logits, target)
    loss.sum().backward()
    # Halved many times, so that the exact loss fits float64.
    halved = loss.detach().numpy().astype(np.float64) * 2.0**-30
    np.testing.assert_allclose(
        halved, hard_reference(name, logits, target, reduction, 2.0**-30), rtol=1e-5
    )
    gradient = hard_gradient(name, logits, target, reduction)
    if gradient is not None:
        np.testing.assert_allclose(logits.grad.double(), gradient, rtol=5e-3, atol=1e-30)
    assert logits.grad.isfinite().all()


def hard(name, logits, target):
    """Adjusted logits z, true classes y, and what the losses max z - z_y of these are times.

    The logits are so far apart that p is 0 or 1.
    """
    z, target = logits.detach().double().numpy(), target.numpy()
    valid = target != 255
    y = np.where(valid, target, 0)
    counts, weight, beta = np.array([50, 20, 5]), np.ones(3), 1
    if name == "bms":
        z = z + np.log(counts)[:, None, None]
    if name == "ldam":
        true = np.arange(3)[:, None, None] == y[:, None]
        z = z - true * 0.5 * ((counts / 5) ** -0.25)[:, None, None]
    if name in ("cb", "cb_focal"):
        weight = np.array(test_losses.effective_number_weights(counts.tolist(), None))
    weight = valid * weight[y] * (20 if name == "ldam" else 1)
    if name == "pat":
        sizes = np.array([[(t == c).sum() for c in range(3)] for t in target])
        wrong = np.take_along_axis(z, y[:, None], 1)[:, 0] < z.max(1)
        beta = np.where(wrong, np.exp(1 / 20), 1)
        size = np.take_along_axis(sizes[:, :, None, None], y[:, None], 1)[:, 0]
        weight = weight / np.maximum(size, 1)
    return z, y, weight, beta


def hard_reference(name, logits, target, reduction, unit):
    """The loss, times a small power of two."""
    z, y, weight, beta = hard(name, logits, target)
    if name in REGION:
        apart = np.where(z == z.max(1, keepdims=True), 0.0, -1e4)
        return unit * test_losses_regions.reference(name, apart, target.numpy(), {})
    z = z * unit
    loss = z.max(1) - np.take_along_axis(z, y[:, None], 1)[:, 0]
    most = unit * torch.finfo(torch.promote_types(logits.dtype, torch.float32)).max
    if logits.dtype == torch.float64:  # there is no wider one to compute in
        loss = weight * (beta * loss.clip(max=most)).clip(max=most)
        loss = loss.clip(max=most)
    else:
        loss = weight * beta * loss
    if reduction == "none":
        return loss.clip(max=most)
    return min(loss.sum() / divisor(name, target, reduction), most)


def divisor(name, target, reduction):
    if reduction != "mean":
        return 1
    return float(len(target) if name == "pat" else (target != 255).sum())


def hard_gradient(name, logits, target, reduction):
    """w (p_c - [c = y]), with p the hard prediction; None where it depends on more."""
    if name in REGION:
        return None
    z, y, weight, beta = hard(name, logits, target)
    p = (z == z.max(1, keepdims=True)).astype(float)
    true = np.arange(3)[:, None, None] == y[:, None]
    return (weight * beta / divisor(name, target, reduction))[:, None] * (p - true)


def test_a_mean_that_fits_of_losses_that_do_not():
    """One pixel of a loss of twice the largest float32, in 100, alone and in a sum of losses."""
    most = torch.finfo(torch.float32).max
    logits = torch.zeros(1, 2, 10, 10)
    logits[0, 0, 0, 0], logits[0, 1, 0, 0] = most, -most
    target = torch.ones(1, 10, 10, dtype=torch.int64)
    assert build("ce", [5, 2])(logits, target).item() == pytest.approx(2 * most / 100)
    params = {"ldam": {"scale": 100}}  # twice the largest
    mix = build_loss("mix", 2, [5, 2], losses={"ce": 0.5, "ldam": 0.4, "dice": 1}, params=params)
    assert mix(logits, target).item() == pytest.approx((0.5 / 100 + 0.4) * 2 * most)
    mix = build_loss("mix", 2, [5, 2], losses={"ce": 0.01}, reduction="sum")
    assert mix(logits, target).item() == pytest.approx(0.02 * most)
    mix = build_loss("mix", 2, [5, 2], losses={"ce": 1e12})
    assert mix(logits.requires_grad_(), target).item() == most
    mix(logits, target).backward()
    assert logits.grad[0, :, 0, 0].tolist() == pytest.approx([1e10, -1e10])


@pytest.mark.parametrize("name", ["cb", "cb_focal", "bms", "ldam", "blv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_largest_counts_beside_the_largest_logits(name, dtype):
    """Scale and τ of a million, counts from 1 to 1e300."""
    params = {"ldam": {"scale": 1e6, "max_margin": 1e6}, "bms": {"tau": 1e6}}.get(name, {})
    logits, target = largest(dtype, 1)
    loss = build_loss(name, 3, [1e300, 1.0, 1e5], **WITHOUT_NOISE.get(name, {}), **params)
    for x in (logits, logits / torch.finfo(dtype).max):
        value = loss(x.requires_grad_(), target)
        assert value.isfinite() and torch.autograd.grad(value, x)[0].isfinite().all()


def test_equal_logits_that_are_too_large_to_be_scaled():
    """The margin is lost in their rounding: p = 1/2, in float32, float64, and compiled."""
    for dtype in (torch.float32, torch.float64):
        logits = torch.full((1, 2, 3, 3), torch.finfo(dtype).max, dtype=dtype).requires_grad_()
        loss = build("ldam", [5, 2])
        for compute in (loss, torch.compile(loss, backend="aot_eager")):
            value = compute(logits, torch.ones(1, 3, 3, dtype=torch.int64))
            assert value.item() == pytest.approx(np.log(2))
            (grad,) = torch.autograd.grad(value, logits)
            assert grad[0, 0].tolist() == pytest.approx(np.full((3, 3), 20 / 2 / 9))


@every_loss
@every_type
def test_no_valid_pixel(name, dtype):
    logits = torch.randn(2, 3, 4, 4).to(dtype).requires_grad_()
    loss = build(name, [50, 20, 5])(logits, torch.full((2, 4, 4), 255))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


@every_loss
@every_type
def test_absent_classes_and_one_pixel_a_class(name, dtype):
    counts = [50, 20, 5, 3, 0, 1]
    logits = torch.randn(1, 6, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    check(name, logits.clone(), torch.tensor([[[0, 1, 2], [3, 255, 5]]]), counts)
    check(name, logits.clone(), torch.tensor([[[0, 0, 0], [0, 0, 0]]]), counts)
    check(name, logits[..., :1, :1].clone(), torch.tensor([[[2]]]), counts)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_1000_classes(name, dtype):
    counts = [1 + 10 * c for c in range(1000)]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1000, 2, 2, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(1000, (1, 2, 2), generator=generator)
    check(name, logits, target, counts, ignore_index=-1)


# 20 megapixels take a gigabyte: only in the long form.
@every_loss
def test_many_pixels(name):
    """A tile, repeated: all losses are those of the tile, however often it is."""
    times = 200 if CHAOS else 30
    logits, target = test_losses.make_batch((1, 4, 20, 25), dtype=torch.float32)
    counts = [50, 20, 5, 1]
    tile = logits.detach(), target
    large = tile[0].repeat(1, 1, times, times).requires_grad_()
    loss = build(name, counts)(large, tile[1].repeat(1, times, times))
    loss.backward()
    assert large[0, 0].numel() == (20_000_000 if CHAOS else 450_000)
    assert loss.item() == pytest.approx(
        reference(name, *tile, counts), rel=2e-4 if name == "lovasz" else 1e-5
    )
    assert large.grad.isfinite().all()


# -- parts of a batch ---------------------------------------------------------------------------

PARTS = [(name, {}) for name in SINGLE] + [("pat", {"normalize": "weights"})]
every_mean = pytest.mark.parametrize(("name", "params"), PARTS)


def shares(name, params, loss, parts):
    """The weight of each part, as the docstring of the loss says."""
    if name != "pat":
        sizes = [float((target != 255).sum()) for _, target in parts]
    elif params:
        # Σ β / S^a, by the reference.
        sizes = []
        for logits, target in parts:
            total = 0.0
            for i, j, k in np.argwhere(target.numpy() != 255):
                y, size = int(target[i, j, k]), int((target[i] == target[i, j, k]).sum())
                x = logits[i, :, j, k].tolist()
                total += test_losses.reference_pat_weight(x, x, y, [50, 20, 5], size, params)
            sizes.append(total)
    else:
        sizes = [float(len(target)) for _, target in parts]
    return [size / sum(sizes) for size in sizes]


def unequal_batch(seed=0):
    logits, target = test_losses.make_batch((6, 3, 4, 4), seed=seed)
    target[0] = 255
    target[1, 1:] = 255
    return logits.detach(), target


def gradient_of(loss, parts, weights):
    """Gradient accumulation, by the logits of the whole batch."""
    logits = torch.cat([x for x, _ in parts]).requires_grad_()
    start = 0
    for (x, target), weight in zip(parts, weights, strict=True):
        (weight * loss(logits[start : start + len(x)], target)).backward()
        start += len(x)
    return logits.grad


@every_mean
def test_the_mean_of_parts(name, params):
    logits, target = unequal_batch()
    loss = build(name, [50, 20, 5], **params)
    whole = gradient_of(loss, [(logits, target)], [1])
    parts = [(logits[:2], target[:2]), (logits[2:], target[2:])]
    weighted = gradient_of(loss, parts, shares(name, params, loss, parts))
    plain = gradient_of(loss, parts, [1 / 2, 1 / 2])
    assert not torch.allclose(plain, whole, rtol=1e-3)
    assert torch.allclose(weighted, whole, rtol=1e-9, atol=1e-15) == (name not in REGION)
    if name == "pat" and not params:  # equally many images, not equally many pixels
        halves = [(logits[:3], target[:3]), (logits[3:], target[3:])]
        torch.testing.assert_close(gradient_of(loss, halves, [1 / 2, 1 / 2]), whole)


@every_mean
def test_equal_parts_have_the_mean_of_the_whole(name, params):
    logits, target = test_losses.make_batch((4, 3, 4, 4), ignored=False)
    logits = logits.detach()
    loss = build(name, [50, 20, 5], **params)
    parts = [(logits[:2], target[:2]), (logits[2:], target[2:])]
    equal = torch.allclose(
        gradient_of(loss, parts, [1 / 2, 1 / 2]), gradient_of(loss, [(logits, target)], [1])
    )
    assert equal == (name not in REGION and not params)


def gradients_of_process(rank, port, results):
    warnings.simplefilter("ignore")
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    logits, target = unequal_batch()
    part = slice(0, 3) if rank == 0 else slice(3, 6)
    for name, params in PARTS:
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 3, 1, dtype=torch.float64)
        model = torch.nn.parallel.DistributedDataParallel(layer)
        build(name, [50, 20, 5], **params)(model(logits[part]), target[part]).backward()
        if rank == 0:
            results.put(layer.weight.grad.numpy())
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_plain_mean_of_their_parts():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=gradients_of_process, args=(rank, port, results)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in PARTS]
    for process in processes:
        process.join()
    logits, target = unequal_batch()
    for (name, params), gradient in zip(PARTS, found, strict=True):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 3, 1, dtype=torch.float64)
        loss = build(name, [50, 20, 5], **params)
        for part in (slice(0, 3), slice(3, 6)):
            (loss(layer(logits[part]), target[part]) / 2).backward()
        np.testing.assert_allclose(gradient, layer.weight.grad.numpy(), rtol=1e-10)


# -- labels on CUDA -------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore_index", [255, None, -1])
def test_a_label_that_is_no_class_is_named(ignore_index):
    target = torch.tensor([[[0, 2, 1]]])
    check_labels(target, 3, ignore_index)
    for label in (3, -5, 1000):
        target[0, 0, 1] = label
        with pytest.raises(ValueError, match=f"target must be in 0 ... 2.* got {label}"):
            check_labels(target, 3, ignore_index)
    if ignore_index is not None:
        target[0, 0, 1] = ignore_index
        check_labels(target, 3, ignore_index)


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU; of a real one see the next test."""

    device = torch.device("cuda")


@pytest.mark.parametrize("looks", ["1", "0"])
def test_labels_on_cuda_are_looked_at_where_that_is_asked_for(monkeypatch, looks):
    monkeypatch.setenv("PATLIB_CHECK_LABELS", looks)
    target = torch.full((1, 1, 2), 7).as_subclass(OnCuda)
    logits = torch.zeros(1, 3, 1, 2)
    if looks == "1":
        with pytest.raises(ValueError, match=r"target must be in 0 ... 2 or .*255, got 7"):
            build("ce", [5, 2, 1])(logits, target)
    else:
        assert build("pat", [5, 2, 1])(logits, target).isnan()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_labels_on_a_gpu(monkeypatch):
    monkeypatch.setenv("PATLIB_CHECK_LABELS", "1")
    logits, target = torch.zeros(1, 3, 1, 2).cuda(), torch.full((1, 1, 2), 7).cuda()
    with pytest.raises(ValueError, match="target must be in 0 ... 2"):
        build("ce", [5, 2, 1])(logits, target)
