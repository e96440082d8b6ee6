"""Shifts of the logits from one class prior to another."""

import math

import numpy as np
import pytest
import torch

from patlib.evaluation import choose_shifts, count_shifted
from patlib.losses import build_loss
from patlib.priors import KINDS, STRENGTHS, ClassPriors, check_prior_shift

SIZES = torch.tensor([[90, 6, 4, 0], [50, 0, 0, 0], [10, 3, 0, 0]])


def priors(name, sizes=SIZES, **params):
    statistics = (sizes.sum(0), (sizes > 0).sum(0), len(sizes))
    with pytest.warns() if name in ("cb", "bms") else np.errstate():
        loss = build_loss(name, sizes.shape[1], *statistics, **params)
    return ClassPriors.of(loss, sizes)


def test_tau_subtracts_the_logarithm_of_the_share_of_the_training_pixels():
    shift = priors("pat").shift({"tau": 0.5})
    # The class without pixels counts as the rarest of the others.
    assert shift.tolist() == pytest.approx([0.5 * math.log(n / 163) for n in (150, 9, 4, 4)])
    assert shift.isfinite().all()
    assert priors("dice").shift({"tau": -1}).tolist() == pytest.approx((-2 * shift).tolist())


def test_kappa_moves_from_the_prior_of_the_loss_to_that_of_the_pixels():
    found = priors("pat", weight="none")  # every image counts once for each of its classes
    shift = found.shift({"kappa": 0.5})
    images, pixels = np.array([3, 2, 1, 1]) / 6, np.array([150, 9, 4, 4]) / 163
    np.testing.assert_allclose(shift, 0.5 * np.log(images / pixels), atol=1e-9)
    # A network without features, trained to the prior, then estimates the shares of the pixels.
    q = found.log_loss - found.shift({"kappa": 1})
    np.testing.assert_allclose(q, np.log(pixels), atol=1e-9)


def test_special_cases():
    ce, bms = priors("ce"), priors("bms")
    assert ce.shift({"kappa": 0.7}).abs().max() < 1e-12  # trains under the shares of the pixels
    assert not ce.shift({"tau": 0}).any() and not bms.shift({"kappa": 0}).any()
    # The prior of balanced softmax is flat: back to the pixels is τ = -κ, but for a constant.
    present = slice(0, 3)
    difference = bms.shift({"kappa": 0.5}) - bms.shift({"tau": -0.5})
    np.testing.assert_allclose(difference[present], difference[0].item(), atol=1e-9)
    # bms at τ = 0 is cross-entropy.
    np.testing.assert_allclose(priors("bms", tau=0.0).log_loss[present], ce.log_loss[present])


def test_a_class_of_weight_0_stays_finite():
    found = priors("ce", class_weights=[1.0, 0.0, 2.0, 1.0])
    assert found.shift({"kappa": 1}).isfinite().all()


def test_scaled_logits_are_shifted_in_their_own_unit():
    sizes = SIZES[:, :3]
    plain, scaled = priors("ce", sizes), priors("ldam", sizes, max_margin=0.0, scale=20.0)
    x = torch.randn(50, 3, dtype=torch.float64)
    labels = [
        (x * 20 - plain.shift({"tau": 1})).argmax(1),
        (x - scaled.shift({"tau": 1})).argmax(1),
    ]
    assert torch.equal(*labels)
    np.testing.assert_allclose(scaled.log_loss, plain.log_loss)


def test_a_loss_without_prior_has_no_kappa():
    for name in ("dice", "mix"):
        found = priors(name)
        assert found.log_loss is None
        assert {kind for shift in found.grid() for kind in shift} == {"tau"}
        with pytest.raises(ValueError, match=r"prior_shift must be .*'tau'.* got \{'kappa': 1"):
            found.shift({"kappa": 1.0})


def test_the_grid():
    grid = priors("pat").grid()
    assert len(grid) == sum(map(len, STRENGTHS.values())) == 14 and grid[4] == {"tau": 0.0}
    assert STRENGTHS["tau"] == tuple(np.arange(-1, 1.25, 0.25))
    assert STRENGTHS["kappa"] == tuple(np.arange(0.25, 1.5, 0.25))
    assert tuple(dict.fromkeys(kind for shift in grid for kind in shift)) == KINDS


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (0.5, r"prior_shift must be one of \{'tau'.*got 0.5"),
        ({}, "prior_shift must be one of"),
        ({"tau": 1, "kappa": 1}, "prior_shift must be one of"),
        ({"t": 1}, "the name in prior_shift must be one of 'tau', 'kappa', got 't'"),
        ({"tau": "1"}, r"prior_shift\['tau'\] must be a finite number, got '1'"),
        ({"kappa": math.inf}, r"prior_shift\['kappa'\] must be a finite number, got inf"),
    ],
)
def test_wrong_shifts_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        check_prior_shift(wrong)


# --- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shifted_counts_against_a_direct_argmax(memory_format, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 6, 7, generator=generator).to(dtype)
    target = torch.randint(5, (3, 6, 7), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    target[1] = 255
    shifts = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    shifts[2] = 0
    found = count_shifted(logits.contiguous(memory_format=memory_format), target, shifts, 5)
    assert found.shape == (3, 4, 2, 5)
    for s, shift in enumerate(shifts):
        labels = (logits.double() - shift[:, None, None]).argmax(1)
        for i in range(3):
            for c in range(5):
                valid = target[i] != 255
                predicted = (labels[i] == c) & valid
                assert found[i, s, 1, c] == predicted.sum()
                assert found[i, s, 0, c] == (predicted & (target[i] == c)).sum()


class Counted:
    """An evaluation of two images of two classes under some shifts: 10 pixels of each class."""

    def __init__(self, *right):
        self.counts = np.array([[[10, 10], [10, 10], [10, 10]]] * 2, np.int32)
        self.shifted = np.array([[[[r, r], [10, 10]]] * 2 for r in right], np.int32)


def test_validation_chooses_the_shift_and_the_test_part_does_not():
    grid = [{"tau": -0.5}, {"tau": 0.0}, {"tau": 0.5}, {"kappa": 0.5}, {"kappa": 1.0}]
    chosen = choose_shifts(grid, Counted(3, 5, 7, 6, 8), Counted(10, 9, 4, 3, 2), {})
    assert {name: c["prior_shift"] for name, c in chosen.items()} == {
        "tau": {"tau": 0.5},
        "kappa": {"kappa": 1.0},
        "any": {"kappa": 1.0},
    }
    assert chosen["tau"]["validation"]["miou"] == pytest.approx(7 / 13)
    assert chosen["tau"]["test"]["miou"] == pytest.approx(4 / 16)
    assert chosen["any"]["test"]["miou_i"] == pytest.approx(2 / 18)


def test_no_shift_is_a_choice_of_every_kind_and_wins_a_tie():
    grid = [{"tau": -0.5}, {"tau": 0.0}, {"tau": 0.5}, {"kappa": 0.5}, {"kappa": 1.0}]
    chosen = choose_shifts(grid, Counted(7, 7, 7, 6, 7), Counted(10, 9, 4, 3, 2), {})
    assert [c["prior_shift"] for c in chosen.values()] == [{"tau": 0}, {"kappa": 0}, {"tau": 0}]
    assert all(c["test"]["miou"] == pytest.approx(9 / 11) for c in chosen.values())
    # Of shifts that are equally good, the smallest.
    chosen = choose_shifts(grid, Counted(7, 6, 7, 8, 8), Counted(10, 9, 4, 3, 2), {})
    assert chosen["kappa"]["prior_shift"] == chosen["any"]["prior_shift"] == {"kappa": 0.5}
    # No valid pixel: nothing is chosen.
    nothing = Counted(0, 0, 0, 0, 0)
    nothing.counts[:], nothing.shifted[:] = 0, 0
    assert choose_shifts(grid, nothing, nothing, {})["any"]["prior_shift"] == {"tau": 0.0}
