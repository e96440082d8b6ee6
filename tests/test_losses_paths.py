"""The ways to compute one loss, in chunks on a CPU, composed, compiled, give the same."""

import itertools
import math

import pytest
import torch
from test_losses import PIXEL, VARIANTS, build, every_loss, seeded, without_noise

from patlib.losses import _formula, _fused, build_loss, focal

pytestmark = pytest.mark.filterwarnings("ignore:class_counts is 0")

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
# What a compiler sees of a loss: its default form, and PAT's second output.
default_losses = pytest.mark.parametrize(
    ("name", "params"), [*((name, {}) for name in PIXEL), ("pat", {"normalize": "weights"})]
)
SHAPES = [(2, 4, 5, 7), (3, 4, 1), (5, 4), (1, 4, 33), (2, 4, 2, 3, 3)]


def make_batch(shape, dtype=torch.float64, seed=0, scale=3.0, channels_last=False):
    """Logits and target with ignored pixels and an absent class."""
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    target = torch.randint(shape[1] - 1, shape[:1] + shape[2:], generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    if channels_last:
        logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
    return logits.requires_grad_(), target


def value_and_gradient(loss, logits, target, upstream=None):
    value = seeded(loss, logits, target)
    upstream = torch.ones_like(value) if upstream is None else upstream.to(value)
    return value.detach(), torch.autograd.grad(value, logits, upstream)[0]


def assert_near(path, reference, dtype):
    """Value and gradient are those of the float64 reference, but for the rounding of dtype."""
    value, grad = path
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    eps = 2.0**-50 if dtype == torch.float64 else 2.0**-20
    largest = lambda x: x.abs().max().item()  # noqa: E731
    torch.testing.assert_close(
        value.double(), reference[0], rtol=0, atol=4 * eps * max(largest(reference[0]), 1)
    )
    torch.testing.assert_close(
        grad.double(),
        reference[1],
        rtol=torch.finfo(dtype).eps,
        atol=4 * eps * max(largest(reference[1]), 1),
    )


@pytest.fixture(params=[32, 2**20], ids=["parts of images", "all images"])
def chunk(request, monkeypatch):
    """Chunks in a buffer, and in the memory of the gradient: see `_chunks`."""
    monkeypatch.setattr(_fused, "CHUNK", request.param)


def reference(loss, logits, target, upstream, monkeypatch):
    """By `composed`, which is F.cross_entropy and autograd, in float64."""
    with monkeypatch.context() as patch:
        patch.setattr(_fused, "implementation", lambda device_type: _formula.composed)
        exact = logits.detach().double().requires_grad_()
        return value_and_gradient(loss, exact, target, upstream)


@every_loss
@pytest.mark.parametrize("path", ["in chunks", "composed"])
def test_paths_agree(name, params, path, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    params = without_noise(name, params)
    for (seed, shape), dtype in itertools.product(enumerate(SHAPES), DTYPES):
        reduction = "mean" if torch.rand((), generator=generator) < 0.5 else "none"
        loss = build(name, params, reduction=reduction)
        batch = make_batch(shape, dtype, seed, channels_last=seed % 2 == 1)
        size = batch[1].shape if reduction == "none" else ()
        upstream = torch.randn(size, generator=generator)
        expected = reference(loss, *batch, upstream, monkeypatch)
        with monkeypatch.context() as patch:
            if path == "composed":
                patch.setattr(_fused, "implementation", lambda _: _formula.composed)
            # A pixel, parts of an image, several images, all of them.
            for chunk in (16, 112, 360, 2**19) if path == "in chunks" else (1,):
                patch.setattr(_fused, "CHUNK", chunk)
                assert_near(value_and_gradient(loss, *batch, upstream), expected, dtype)


@every_loss
@pytest.mark.usefixtures("chunk")
def test_upstream_gradients(name, params):
    logits, target = make_batch((2, 4, 3, 5))
    ones = {r: value_and_gradient(build(name, params, reduction=r), logits, target)[1]
            for r in ("mean", "sum", "none")}  # fmt: skip
    for reduction, grad in ones.items():
        loss = build(name, params, reduction=reduction)
        for factor in (0.0, -2.5):
            upstream = torch.full(target.shape if reduction == "none" else (), factor)
            _, scaled = value_and_gradient(loss, logits, target, upstream)
            torch.testing.assert_close(scaled, factor * grad)
    # One pixel alone.
    upstream = torch.zeros(target.shape)
    i, j, k = (target != 255).nonzero()[3]
    upstream[i, j, k] = 1
    _, alone = value_and_gradient(build(name, params, reduction="none"), logits, target, upstream)
    assert (alone[i, :, j, k] != 0).any()
    torch.testing.assert_close(alone[i, :, j, k], ones["none"][i, :, j, k])
    alone[i, :, j, k] = 0
    assert (alone == 0).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("chunk")
def test_extreme_logits(name, params, dtype, monkeypatch):
    params = without_noise(name, params)
    logits, target = make_batch((2, 4, 6, 5), dtype, scale=5e3)
    logits = logits.detach().clamp_(-1e4, 1e4).requires_grad_()
    loss = build(name, params)
    result = value_and_gradient(loss, logits, target)
    assert result[0].isfinite() and result[1].isfinite().all()
    assert_near(result, reference(loss, logits, target, None, monkeypatch), dtype)


@every_loss
@pytest.mark.usefixtures("chunk")
def test_a_class_that_is_ruled_out(name, params):
    # Logits of -inf: probability 0, no gradient; the others as if the class were not there.
    logits, target = make_batch((2, 4, 6, 5))
    masked = logits.detach().clone()
    masked[:, 3] = -math.inf  # absent from the target
    low = masked.clamp_min(-1e4).requires_grad_()
    masked.requires_grad_()
    loss = build(name, without_noise(name, params))
    value, grad = value_and_gradient(loss, masked, target)
    expected = value_and_gradient(loss, low, target)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(grad, expected[1])
    assert (grad[:, 3] == 0).all()


@every_loss
@pytest.mark.parametrize("path", ["in chunks", "composed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_true_class_that_is_ruled_out(name, params, path, dtype, monkeypatch):
    # A logit of -inf at the true class: the loss is infinite, every gradient finite, as of
    # cross-entropy, and that of logits that are as low as can be.
    monkeypatch.setattr(_fused, "CHUNK", 32)
    if path == "composed":
        monkeypatch.setattr(_fused, "implementation", lambda _: _formula.composed)
    logits, target = make_batch((2, 4, 6, 5), dtype)
    y = target[1, 2, 3] = 2
    low = logits.detach().clone()
    low[1, y, 2, 3] = -1e4
    ruled_out = low.clone()
    ruled_out[1, y, 2, 3] = -math.inf
    loss = build(name, without_noise(name, params), reduction="sum")
    value, grad = value_and_gradient(loss, ruled_out.requires_grad_(), target)
    assert value == math.inf
    assert grad.isfinite().all() and grad[1, :, 2, 3].any()
    expected = value_and_gradient(loss, low.requires_grad_(), target)[1]
    # The one of the infinite loss is computed in float64.
    torch.testing.assert_close(grad, expected, rtol=max(1e-5, torch.finfo(dtype).eps), atol=1e-5)


@every_loss
@pytest.mark.usefixtures("chunk")
def test_ignored_pixels_may_hold_anything(name, params):
    logits, target = make_batch((2, 4, 6, 5))
    ignored = (target == 255).unsqueeze(1).expand_as(logits)
    loss = build(name, without_noise(name, params))
    value, grad = value_and_gradient(loss, logits, target)
    for wrong in (-math.inf, math.inf, math.nan):
        other = logits.detach().masked_fill(ignored, wrong).requires_grad_()
        bad_value, bad_grad = value_and_gradient(loss, other, target)
        torch.testing.assert_close(bad_value, value)
        torch.testing.assert_close(bad_grad[~ignored], grad[~ignored])


@pytest.mark.parametrize(
    ("name", "params"), [v for v in VARIANTS if not (v[1].get("detach") or "normalize" in v[1])]
)
def test_gradient_of_the_gradient(name, params):
    logits, target = make_batch((2, 4, 3))
    loss = build(name, params, reduction="none")
    assert torch.autograd.gradgradcheck(lambda x: seeded(loss, x, target), logits)


@every_loss
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("chunk")
def test_backward_twice(name, params, dtype):
    logits, target = make_batch((2, 4, 5, 7), dtype)
    value = seeded(build(name, params, reduction="none"), logits, target)
    upstream = torch.randn(target.shape)
    first, second, third = (
        torch.autograd.grad(value, logits, factor * upstream, retain_graph=True)[0]
        for factor in (1, 1, -2)
    )
    assert first.any()
    torch.testing.assert_close(second, first)
    torch.testing.assert_close(third, -2 * first)


@pytest.mark.parametrize(
    "f",
    [
        _formula.cross_entropy,
        lambda log_p: focal.focal(log_p, 2.0),
        lambda log_p: focal.focal(log_p, 0.5),
        lambda log_p: focal.focal(log_p, 0.0),
    ],
)
def test_derivative_beside_the_equation(f):
    log_p = -torch.logspace(-12, 4, 200, dtype=torch.float64).requires_grad_()
    value, derivative = f(log_p)
    (expected,) = torch.autograd.grad(value.sum(), log_p)
    torch.testing.assert_close(derivative.expand_as(expected), expected)


def memory(step):
    """Bytes allocated during a call and still there at its end, and the most at once."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    del result
    return sum(changes), max(itertools.accumulate(changes, initial=0))


@pytest.mark.parametrize(("name", "params"), [("ldam", {}), ("pat", {"normalize": "weights"})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory(name, params, dtype, monkeypatch):
    monkeypatch.setattr(_fused, "CHUNK", 400)
    logits, target = make_batch((2, 4, 40, 50), dtype)
    loss = build(name, params)
    loss(logits, target)  # what is made only once
    # A number a pixel, and where there is no rounding the gradient itself; a few more a batch.
    held, _ = memory(lambda: loss(logits, target))
    gradient = logits.nbytes if dtype == torch.float32 and name != "ldam" else 0
    assert gradient + 4 * target.numel() <= held <= gradient + 4 * target.numel() + 4096
    # In all: that, the labels as columns, the loss of each pixel, its gradient.
    _, most = memory(lambda: torch.autograd.grad(loss(logits, target), logits))
    assert most <= logits.nbytes + 24 * target.numel() + 20_000


# ------------------------------------------------------------------ the compiler


@pytest.fixture
def fresh_compiler(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(_fused, "_cannot_compile", False)
    monkeypatch.setattr(_fused, "implementation", lambda _: _fused.compiled)

    def use(backend):
        compiler = torch.compile(_formula.composed, backend=backend)
        monkeypatch.setattr(_fused, "_compiler", lambda: compiler)

    yield use
    torch._dynamo.reset()


def test_path_of_each_device():
    assert _fused.implementation("cpu") == _fused._InChunks.apply
    assert _fused.implementation("cuda") is _fused.compiled
    assert _fused.implementation("mps") is _formula.composed


def test_compilation_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("PATLIB_COMPILE", "0")
    assert _fused.implementation("cuda") is _formula.composed
    assert _fused.implementation("cpu") == _fused._InChunks.apply
    monkeypatch.setenv("PATLIB_COMPILE", "1")
    assert _fused.implementation("cuda") is _fused.compiled


@default_losses
def test_compiled_path(name, params, fresh_compiler, monkeypatch):
    fresh_compiler("aot_eager")
    loss = build(name, without_noise(name, params), reduction="none")
    for dtype in (torch.float32, torch.bfloat16):
        logits, target = make_batch((2, 4, 5, 7), dtype)
        upstream = torch.randn(target.shape)
        result = value_and_gradient(loss, logits, target, upstream)
        assert_near(result, reference(loss, logits, target, upstream, monkeypatch), dtype)
    assert not _fused._cannot_compile


def kept_bytes(loss, logits, target):
    """Bytes kept for the backward pass, besides logits and target."""
    known = {logits.data_ptr(), target.data_ptr()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(logits, target)
    value.backward()
    return sum(kept.values())


@pytest.mark.parametrize(
    ("name", "backend"),
    # Without the second's code generation the first partitions the graph in the same way.
    [("ldam", "aot_eager_decomp_partition"), ("pat", "inductor")],
)
def test_compiled_kernel(name, backend, fresh_compiler, monkeypatch):
    fresh_compiler(backend)
    loss = build(name)
    logits, target = make_batch((2, 4, 16, 24), torch.float32)
    result = value_and_gradient(loss, logits, target)
    assert_near(result, reference(loss, logits, target, None, monkeypatch), torch.float32)
    assert not _fused._cannot_compile
    # Nothing of the size of the logits is kept.
    assert kept_bytes(loss, logits, target) < logits.nbytes


@default_losses
def test_compiled_once_for_all_batches(name, params, fresh_compiler):
    counter = torch._dynamo.testing.CompileCounter()
    fresh_compiler(counter)
    loss = build(name, params)
    for seed in range(3):
        logits, target = make_batch((2, 4, 5, 7), seed=seed)
        loss(logits, target).backward()
    assert counter.frame_count == 1


def test_without_a_compiler(fresh_compiler, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    fresh_compiler(broken)
    loss = build("pat")
    logits, target = make_batch((2, 4, 5, 7))
    with pytest.warns(UserWarning, match="no compiler here"):
        result = value_and_gradient(loss, logits, target)
    assert_near(result, reference(loss, logits, target, None, monkeypatch), torch.float64)
    assert _fused._cannot_compile
    value_and_gradient(loss, logits, target)  # no second try, no second warning


@default_losses
def test_inside_a_compiled_model(name, params):
    torch._dynamo.reset()
    logits, target = make_batch((2, 4, 5, 7))
    loss = build(name, without_noise(name, params))

    def model(logits, target):
        return 3 * loss(2 * logits, target)

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for one, other in zip(
        value_and_gradient(compiled, logits, target),
        value_and_gradient(model, logits, target),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "ignore_index"),
    [*((name, 255) for name in PIXEL), ("ce", -100), ("ce", 1), ("ce", None)],
)
def test_wrong_label_in_a_compiled_loss(name, ignore_index):
    torch._dynamo.reset()
    logits, target = make_batch((2, 4, 5))
    target[target == 255] = 0 if ignore_index is None else ignore_index
    wrong = target.clone()
    wrong[1, 2] = 19  # neither a class nor ignored
    loss = build_loss(name, 4, class_counts=[9, 5, 2, 1], ignore_index=ignore_index).eval()
    exported = torch.export.export(loss, (logits, target)).module()
    for compiled in (torch.compile(loss, backend="eager", fullgraph=True), exported):
        torch.testing.assert_close(compiled(logits, target), loss(logits, target))
        if ignore_index == 255:
            assert compiled(logits, wrong).isnan()
        else:  # on a GPU: an assertion of the device
            with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
                compiled(logits, wrong)
