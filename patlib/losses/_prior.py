"""Class priors: what a network without features learns from each loss.

Such a network has one logit for each class, the same for every pixel, and minimises the loss over
the training set. The softmax of its logits is the prior of the classes under which the loss trains:
`SegmentationLoss.class_prior`. Two forms cover the losses of this package.
"""

import math

import torch
from torch import Tensor

from ._formula import Pointwise

# Halvings of an interval of 100, to below the rounding of its numbers.
HALVINGS = 60
# Numbers at which a sum is taken at once, and how often: 1100 / 63**9 is below rounding.
GRID, REFINEMENTS = 64, 9


def normalised(mass: Tensor) -> Tensor:
    """Shares that sum to 1."""
    return mass / mass.sum()


def pointwise_prior(mass: Tensor, f: Pointwise) -> Tensor:
    """The p that minimises Σ_c mass_c · f(log p_c), Σ_c p_c = 1: float64 (L,).

    At the minimum mass_c · s(p_c) is the same number λ for all c, with s(p) = -f'(log p) / p,
    which falls from ∞ at p = 0. So p_c(λ) is found by bisection, and the λ of Σ_c p_c(λ) = 1 on
    ever finer grids. For cross-entropy s = 1 / p: p is proportional to the mass.

    Args:
        mass: the weights of all training pixels of each class, summed, (L,), float64, >= 0.
        f: of log p; returns f and its derivative by log p (see `_formula`).
    """
    present = mass > 0
    log_mass = mass[present].log()
    prior = torch.zeros_like(mass)
    if present.sum() == 1:
        prior[present] = 1
        return prior

    def log_p(log_lambda: Tensor) -> Tensor:
        high = torch.zeros_like(log_lambda + log_mass)
        low = high - 100
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            log_s = torch.log(-f(middle)[1]) - middle
            larger = log_mass + log_s > log_lambda  # s falls: p is larger than this
            low, high = low.where(~larger, middle), high.where(larger, middle)
        return (low + high) / 2

    low, high = log_mass.max() - 1000, log_mass.max() + 100
    for _ in range(REFINEMENTS):
        grid = low + (high - low) * torch.linspace(0, 1, GRID, dtype=torch.float64)
        above = log_p(grid[:, None]).exp().sum(1) > 1  # first all True, then all False
        i = above.sum().clamp(1, GRID - 1)
        low, high = grid[i - 1], grid[i]
    prior[present] = torch.softmax(log_p(low), 0)
    return prior


def softmax_prior(mass: Tensor, offsets: Tensor, row_weights: Tensor) -> Tensor:
    """softmax(z) of the z that minimises Σ_m v_m log Σ_l exp(z_l + d_ml) - Σ_l π_l z_l.

    Cross-entropy with something added to the logits has this form, with π the shares of the mass:
    the mean of softmax(z + d) over the rows is π at the minimum. Convex in z; by Newton's method.

    Args:
        mass: the weights of all training pixels of each class, summed, (L,), float64, >= 0.
        offsets: d, (M, L).
        row_weights: v, (M,), >= 0, summing to 1.
    """
    present = mass > 0
    share, d = normalised(mass[present]), offsets[:, present]
    z = share.log() - (row_weights @ torch.softmax(d, 1)).log()

    def value(z: Tensor) -> Tensor:
        return row_weights @ torch.logsumexp(z + d, 1) - share @ z

    for _ in range(200):
        rows = torch.softmax(z + d, 1)
        mean = row_weights @ rows
        gradient = mean - share
        if (gradient.abs() <= 1e-12 * share).all():
            break
        hessian = torch.diag(mean) - rows.T @ (row_weights[:, None] * rows)
        # z + a constant is the same: 1 in that direction makes the matrix regular.
        step = torch.linalg.solve(hessian + 1 / len(share), gradient)
        size, now, slope = 1.0, value(z), gradient @ step
        while value(z - size * step) > now - 1e-4 * size * slope and size > 1e-9:
            size /= 2
        if size * step.abs().max() < 1e-14 * max(1, z.abs().max().item()):
            break
        z = z - size * step
    prior = torch.zeros_like(mass)
    prior[present] = torch.softmax(z, 0)
    return prior


def latin_hypercube(rows: int, columns: int) -> Tensor:
    """Evenly spread numbers in (0, 1), (rows, columns), in independent orders; always the same."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(rows, columns, generator=generator, dtype=torch.float64).argsort(0)
    return (order.double() + 0.5) / rows


def standard_normal_quantile(u: Tensor) -> Tensor:
    return math.sqrt(2) * torch.erfinv(2 * u - 1)
