"""The class prior of each loss, against a network without features that is trained with it."""

import copy

import numpy as np
import pytest
import scipy.optimize
import torch
from test_losses import PIXEL, VARIANTS

from patlib.losses import LOSSES, build_loss
from patlib.losses._prior import pointwise_prior, softmax_prior

# Five images of 400 pixels; pixels of four classes in each, the rest ignored.
SIZES = torch.tensor(
    [[300, 80, 0, 0], [250, 100, 45, 5], [390, 0, 10, 0], [280, 100, 0, 0], [200, 90, 110, 0]]
)
PIXELS, IMAGES = SIZES.sum(0).double(), (SIZES > 0).sum(0).double()
NATURAL = PIXELS / PIXELS.sum()
TARGET = torch.full((5, 400), 255)
for image, sizes in zip(TARGET, SIZES.tolist(), strict=True):
    labels = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    image[: len(labels)] = labels


def build(name, params=None, sizes=SIZES, **more):
    present = (sizes > 0).sum(0)
    statistics = {"class_counts": sizes.sum(0), "class_images": present, "num_images": len(sizes)}
    return build_loss(name, sizes.shape[1], **statistics, **(params or {}), **more)


def same(prior, expected, rtol=1e-9):
    assert prior.dtype == torch.float64 and prior.device.type == "cpu"
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(prior, expected / expected.sum(), rtol=rtol, atol=1e-12)


def trained(loss):
    """The biases at which the gradient of the loss over all images is 0."""

    def gradient(free):
        bias = torch.tensor([0.0, *free], dtype=torch.float64, requires_grad=True)
        torch.manual_seed(0)  # blv: the same noise in every step
        loss(bias.expand(5, 400, 4).mT, TARGET).backward()
        return bias.grad[1:].numpy()

    # From the minimum of something else, so that nothing is given away.
    solution = scipy.optimize.root(gradient, np.zeros(3), method="hybr", tol=1e-13)
    assert np.abs(gradient(solution.x)).max() < 1e-6 * np.abs(gradient(np.ones(3))).max()
    return torch.tensor([0.0, *solution.x], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "params"),
    [*(v for v in VARIANTS if v[0] != "blv"), ("ldam", {"deferred": 0.5, "scale": 5.0})],
)
def test_a_network_without_features_ends_at_the_prior(name, params):
    loss = build(name, params, reduction="sum")
    if "deferred" in params:
        loss.progress = 0.9
    bias = trained(loss)
    prior = loss.class_prior(SIZES)
    same(prior, torch.softmax(loss.logit_scale * bias, 0), rtol=1e-5)
    # The shift by all of the prior leaves that of the pixels.
    shifted = loss.logit_scale * bias - (prior.log() - NATURAL.log())
    torch.testing.assert_close(torch.softmax(shifted, 0), NATURAL, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "params", [{"sigma": 0.5}, {"sigma": 4.0}, {"noise": "uniform"}, {"noise": "xavier"}]
)
def test_the_prior_of_blv_is_that_under_its_noise(params):
    loss, plain = build("blv", params, reduction="sum"), build("ce")
    prior = loss.class_prior(SIZES)
    # 1,960 pixels have as many draws of the noise: a tolerance of the sampling error.
    same(prior, torch.softmax(trained(loss), 0), rtol=0.04)
    # The rarest class is below its frequency.
    assert prior[3] < 0.95 * plain.class_prior(SIZES)[3]
    same(build("blv", {"sigma": 0.0}).class_prior(SIZES), PIXELS)


def test_priors_that_have_a_formula():
    for name, params in (("ce", {}), ("bms", {"tau": 0.0}), ("focal", {"gamma": 0.0})):
        same(build(name, params).class_prior(SIZES), PIXELS)
    same(build("ce", {"class_weights": "inverse"}).class_prior(SIZES), [1, 1, 1, 1])
    same(build("ce", {"class_weights": "median_frequency"}).class_prior(SIZES), IMAGES)
    weights = [1, 2, 0, 4]
    own = build("ce", {"class_weights": weights}).class_prior(SIZES)
    same(own, PIXELS * torch.tensor(weights))
    same(build("bms").class_prior(SIZES), [1, 1, 1, 1])
    same(build("bms", {"tau": 0.25}).class_prior(SIZES), PIXELS**0.75)
    same(build("cb", {"beta": 0.0}).class_prior(SIZES), PIXELS)
    same(build("cb").class_prior(SIZES), [1, 1, 1, 1], rtol=0.3)  # 1 / E is near 1 / n
    same(build("ldam", {"max_margin": 0.0}).class_prior(SIZES), PIXELS)

    def pat(**params):
        return build("pat", {"weight": "none", **params}).class_prior(SIZES)

    same(pat(), IMAGES)
    same(pat(size_exponent=0.0), PIXELS)
    same(pat(size_exponent=0.5), SIZES.double().sqrt().sum(0))
    same(pat(presence_exponent=1.0), [1, 1, 1, 1])
    same(pat(sizes="dataset"), [1, 1, 1, 1])
    same(pat(sizes="dataset", size_exponent=0.25), PIXELS**0.75)
    # β is between 1 and 1.051 at T = 20.
    same(build("pat").class_prior(SIZES), IMAGES, rtol=0.06)
    assert not torch.allclose(build("pat").class_prior(SIZES), pat(), rtol=1e-3)


def test_deferred_weights_make_the_prior_of_ldam_flatter():
    plain = build("ldam", {"max_margin": 0.0})
    deferred = build("ldam", {"max_margin": 0.0, "deferred": 0.8})
    assert deferred.class_prior(SIZES).std() < 0.2 * plain.class_prior(SIZES).std()
    # It is that of the end of the training, whatever has been done of it.
    before = deferred.class_prior(SIZES)
    deferred.progress = 1.0
    assert torch.equal(deferred.class_prior(SIZES), before)


@pytest.mark.parametrize("name", PIXEL)
@pytest.mark.filterwarnings("ignore:class_counts is 0", "ignore:class_images")
def test_an_absent_class_has_no_prior(name):
    absent = torch.cat([SIZES[:, :2], torch.zeros(5, 1, dtype=torch.int64), SIZES[:, 2:]], 1)
    prior = build(name, sizes=absent).class_prior(absent)
    assert prior[2] == 0 and prior.isfinite().all()
    rest = build(name).class_prior(SIZES)
    if name != "blv":  # other noise
        torch.testing.assert_close(prior[[0, 1, 3, 4]], rest, rtol=1e-9, atol=0)
    one = torch.tensor([[0, 7, 0]])
    assert build(name, sizes=one).class_prior(one).tolist() == [0, 1, 0]


def test_long_tails_of_150_classes():
    generator = torch.Generator().manual_seed(0)
    rate = torch.logspace(7, 0.5, 150, dtype=torch.float64)
    sizes = torch.poisson(rate.expand(30, -1) / 30, generator=generator).long()
    sizes[0] += 1
    for name in PIXEL:
        prior = build(name, sizes=sizes).class_prior(sizes)
        assert prior.shape == (150,) and (prior > 0).all()
        assert prior.sum().item() == pytest.approx(1, abs=1e-9)


def test_losses_without_a_prior():
    for name in set(LOSSES) - set(PIXEL):
        assert build(name).class_prior(SIZES) is None


def test_solvers_against_scipy():
    mass = torch.tensor([1e6, 3e4, 10.0], dtype=torch.float64)

    def focal(log_p):  # γ = 2
        p = log_p.exp()
        return -((1 - p) ** 2) * log_p, -((1 - p) ** 2) + 2 * (1 - p) * p * log_p

    def value(free):
        log_p = torch.log_softmax(torch.tensor([0.0, *free], dtype=torch.float64), 0)
        return float(mass @ focal(log_p)[0] / mass.sum())

    options = {"xatol": 1e-10, "fatol": 1e-16, "maxiter": 10_000}
    found = scipy.optimize.minimize(value, [-1, -2], method="Nelder-Mead", options=options)
    expected = torch.softmax(torch.tensor([0.0, *found.x], dtype=torch.float64), 0)
    torch.testing.assert_close(pointwise_prior(mass, focal), expected, rtol=1e-3, atol=0)

    offsets = torch.tensor([[0.0, 1.0, 3.0], [2.0, -1.0, 0.5]], dtype=torch.float64)
    rows = torch.tensor([0.3, 0.7], dtype=torch.float64)
    z = softmax_prior(mass, offsets, rows).log()
    mean = rows @ torch.softmax(z + offsets, 1)
    torch.testing.assert_close(mean, mass / mass.sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        SIZES[0],
        SIZES[:, :3],
        -SIZES,
        0 * SIZES,
        SIZES.double() * float("nan"),
    ],
)
def test_wrong_class_sizes(wrong):
    with pytest.raises(ValueError, match=r"class_sizes must be .*\(N, 4\).*got shape"):
        build("ce").class_prior(wrong)


def test_a_shift_inside_the_loss_is_another_initial_bias():
    """PAT(x + c) trains the network that PAT(x) trains from a bias greater by c."""
    torch.manual_seed(0)
    images = torch.rand(4, 3, 12, 12, dtype=torch.float64)
    target = torch.randint(3, (4, 12, 12))
    shift = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    loss = build_loss("pat", num_classes=3)
    first = torch.nn.Conv2d(3, 3, 3, padding=1, dtype=torch.float64)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.bias += shift
    for network, inside in ((first, shift), (second, torch.zeros(3, dtype=torch.float64))):
        optimizer = torch.optim.Adam(network.parameters(), 0.05)
        for _ in range(20):
            optimizer.zero_grad()
            loss(network(images) + inside[:, None, None], target).backward()
            optimizer.step()
    torch.testing.assert_close(first(images) + shift[:, None, None], second(images))
