import math

import numpy as np
import pytest
import torch

from patlib.data import SAMPLERS, DecodedSplit, Synthetic, class_sizes, count_classes
from patlib.data.samplers import (
    rare_class,
    rare_class_probabilities,
    repeat_factor,
    repeat_factors,
)

every_sampler = pytest.mark.parametrize("name", SAMPLERS)
# Ten images: class 0 in all but the last, which has no valid pixel, 1 in three, 2 in one.
SIZES = torch.tensor(
    [[90, 0, 0]] * 6 + [[80, 10, 0]] * 2 + [[50, 5, 1]] + [[0, 0, 0]], dtype=torch.int64
)


def generator(*numbers):
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


def shown(name, count, **params):
    """How often each of the ten images is shown in `count` images, int64 (10,).

    In epochs of 1,000: a hundred copies of each.
    """
    sizes = SIZES.repeat(100, 1)
    sampler = SAMPLERS[name]
    orders = [sampler(sizes, generator(7, i), **params) for i in range(count // 1000)]
    return (torch.cat(orders) % 10).bincount(minlength=10)


@every_sampler
def test_an_epoch_has_as_many_images_as_the_training_set(name):
    for sizes in (SIZES, SIZES[:1], SIZES[:7]):
        order = SAMPLERS[name](sizes, generator(0, 0))
        assert order.dtype == torch.int64 and order.shape == (len(sizes),)
        assert 0 <= order.min() and order.max() < len(sizes)


@every_sampler
def test_the_order_depends_on_the_seed_and_the_epoch_only(name):
    sizes = SIZES.repeat(5, 1)
    before = sizes.clone()
    first = SAMPLERS[name](sizes, generator(3, 2))
    torch.manual_seed(11)
    torch.rand(3)
    state = torch.random.get_rng_state()
    again = SAMPLERS[name](sizes, generator(3, 2))
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), state) and torch.equal(sizes, before)
    for other in ((3, 3), (4, 2)):
        assert not torch.equal(SAMPLERS[name](sizes, generator(*other)), first)


def test_uniform_is_a_permutation_and_leaves_the_generator_where_randperm_does():
    one, other = generator(5), generator(5)
    order = SAMPLERS["uniform"](SIZES, one)
    assert torch.equal(order, torch.randperm(10, generator=other))
    assert torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=other))
    assert order.sort().values.tolist() == list(range(10))


def test_repeat_factors_by_the_definition():
    for threshold in (0.001, 0.2, 0.5, 1.0):
        expected = []
        for image in SIZES.numpy():
            shares = [(SIZES.numpy()[:, c] > 0).mean() for c in range(3) if image[c] > 0]
            expected.append(max([1.0, *(math.sqrt(threshold / f) for f in shares)]))
        np.testing.assert_allclose(repeat_factors(SIZES, threshold), expected)
    # At LVIS's threshold nothing is repeated here.
    assert repeat_factors(SIZES, 0.001).tolist() == [1] * 10


def test_repeat_factor_shows_images_in_their_ratios():
    factors = repeat_factors(SIZES)
    times = shown("repeat_factor", 100_000).double()
    assert times.sum() == 100_000
    np.testing.assert_allclose(times / times.sum(), factors / factors.sum(), rtol=0.03)
    assert times[8] > 2 * times[0]


def test_repeat_factor_rounds_up_with_the_probability_of_the_fraction():
    # Images in groups of one class each, so that the factors are sqrt(0.5 / f): 1, 1, 2.236 for
    # shares of 0.6, 0.3 (rounded up: 1.291) and 0.1.
    sizes = torch.zeros(1000, 3, dtype=torch.int64)
    sizes[:600, 0] = sizes[600:900, 1] = sizes[900:, 2] = 1
    orders = [repeat_factor(sizes, generator(epoch)) for epoch in range(50)]
    times = torch.stack([order.bincount(minlength=1000) for order in orders])
    total = 600 + 300 * math.sqrt(5 / 3) + 100 * math.sqrt(5)
    for group, factor in ((slice(0, 600), 1.0), (slice(600, 900), math.sqrt(5 / 3)),
                          (slice(900, 1000), math.sqrt(5))):  # fmt: skip
        assert times[:, group].double().mean().item() == pytest.approx(
            1000 * factor / total, rel=0.02
        )
        assert times[:, group].max() == math.ceil(factor)
    # Without the threshold it is a permutation.
    order = repeat_factor(sizes, generator(1), threshold=0.05)
    assert order.sort().values.tolist() == list(range(1000))


def test_rare_class_probabilities_by_the_definition():
    pixels = SIZES.sum(0).numpy()
    share = pixels / pixels.sum()
    for temperature in (0.01, 0.5, 10):
        weights = np.exp((1 - share - (1 - share).max()) / temperature)
        expected = weights / weights.sum()
        np.testing.assert_allclose(rare_class_probabilities(SIZES, temperature), expected)
    absent = torch.cat([SIZES, torch.zeros(10, 1, dtype=torch.int64)], 1)
    assert rare_class_probabilities(absent)[3] == 0
    torch.testing.assert_close(
        rare_class_probabilities(absent)[:3], rare_class_probabilities(SIZES)
    )


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_rare_class_shows_images_with_their_probability(temperature):
    count = 100_000
    times = shown("rare_class", count, temperature=temperature).double()
    p = rare_class_probabilities(SIZES, temperature).numpy()
    present = (SIZES > 0).numpy()
    expected = (present / present.sum(0) * p).sum(1)
    assert times[9] == 0 and expected[9] == 0  # no valid pixel
    spread = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(times.numpy() / count - expected) <= 4.5 * spread).all()


def test_rare_class_of_many_classes_draws_only_images_that_hold_one():
    sizes = torch.zeros(200, 150, dtype=torch.int64)
    sizes[torch.arange(100), torch.arange(100)] = 1
    order = rare_class(sizes, generator(0))
    assert order.max() < 100 and len(order.unique()) > 60


def test_what_is_refused():
    with pytest.raises(
        ValueError, match="threshold must be a finite number <= 1 and > 0, got 0|> 0"
    ):
        repeat_factor(SIZES, generator(0), threshold=0)
    with pytest.raises(ValueError, match="temperature must be a finite number > 0, got 0"):
        rare_class(SIZES, generator(0), temperature=0)
    with pytest.raises(ValueError, match="class_sizes must have a pixel"):
        rare_class(0 * SIZES, generator(0))


# ------------------------------------------------------------------ class sizes


def test_class_sizes_of_a_data_set():
    dataset = Synthetic(image_size=(32, 40))
    sizes = class_sizes(dataset)
    assert sizes.dtype == torch.int64 and sizes.shape == (len(dataset), dataset.num_classes)
    for i in (0, 7, len(dataset) - 1):
        target = dataset[i][1]
        expected = [(target == c).sum().item() for c in range(dataset.num_classes)]
        assert sizes[i].tolist() == expected
    assert torch.equal(sizes.sum(0), count_classes(dataset))


def test_class_sizes_of_arrays():
    masks = np.random.default_rng(0).integers(0, 4, (6, 5, 7)).astype(np.uint8)
    masks[0] = 255
    masks[1, 0] = 255
    masks[masks == 2] = 0
    split = DecodedSplit(np.empty(0), masks, np.bincount(masks.ravel(), minlength=256), "")
    sizes = class_sizes(split, 4)
    expected = [[(mask == c).sum() for c in range(4)] for mask in masks]
    assert sizes.tolist() == expected
    assert sizes[0].sum() == 0 and (sizes[:, 2] == 0).all()
    assert torch.equal(sizes.sum(0), count_classes(split, 4))
    with pytest.raises(
        ValueError, match="num_classes must be an integer >= 1 and <= 255, got None"
    ):
        class_sizes(split)
