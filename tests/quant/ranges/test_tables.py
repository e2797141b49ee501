"""The default multipliers against the losses that they should keep small, by numpy."""

import functools

import numpy as np
import pytest
from scipy.stats import laplace, norm

from mmgdrq.quant import ActivationSpec, WeightSpec
from tests.helpers import reference

X = np.linspace(0, 25, 12_501)
DENSITIES = dict(gaussian=norm.pdf(X), laplace=laplace.pdf(X))
"""Of a symmetric distribution, or of what a ReLU leaves of it."""


def moment(name, power):
    return (DENSITIES[name] * X**power).sum() / DENSITIES[name].sum()


def unit(rule, name, signed):
    """The statistic of a rule; half of the elements are zero where the grid is unsigned."""
    if rule == 'lehmer':
        return moment(name, 3) / moment(name, 2)
    return moment(name, 1) * (0.5 if rule == 'mean' and not signed else 1)


OF_BEST = {
    # entry over the multiplier of the least squared error for a Gaussian, for 2 to 8 bits; more leaves room for tails
    ('mean', False): (1.23, 1.46, 1.64, 1.70, 1.76, 1.83, 1.88),
    ('mean', True): (0.94, 0.83, 1.03, 1.32, 1.32, 1.32, 1.42),
    ('active_mean', False): (1.02, 1.13, 1.37, 1.34, 1.32, 1.42, 1.50),
    ('active_mean', True): (0.94, 0.83, 1.03, 1.32, 1.32, 1.32, 1.42),
    ('lehmer', False): (1, 1, 1, 1, 1, 1, 1),
    ('lehmer', True): (1, 1, 1, 1, 1, 1, 1),
}
WEIGHTS_OF_BEST = (0.80, 0.83, 0.89, 1.05, 1.20, 1.43, 1.63)


def loss(name, threshold, grid, p=2):
    low, high, levels, offset = grid
    step = threshold / levels
    error = 0
    for x in (X,) if low == 0 else (X, -X):
        rounded = (np.clip(np.round(x / step - offset), low, high) + offset) * step
        error += (DENSITIES[name] * np.abs(x - rounded) ** p).sum()
    return error ** (1 / p)


@functools.cache
def best_threshold(name, grid, p=2):
    candidates = np.geomspace(0.8, 20, 250)
    return candidates[np.argmin([loss(name, threshold, grid, p) for threshold in candidates])]


@pytest.mark.parametrize(('rule', 'signed'), OF_BEST)
@pytest.mark.parametrize('bits', range(2, 9))
def test_multipliers_of_inputs(rule, signed, bits):
    grid = reference.activation_grid(bits, signed)
    best = best_threshold('gaussian', grid) / unit(rule, 'gaussian', signed)
    found = ActivationSpec(bits=bits, range=rule).multiplier(signed)
    assert found / best == pytest.approx(OF_BEST[rule, signed][bits - 2], rel=0.04)


@pytest.mark.parametrize('bits', range(2, 9))
def test_multipliers_of_weights(bits):
    spec = WeightSpec(bits=bits)
    grid = reference.weight_grid(bits, spec.effective_grid)
    best = best_threshold('gaussian', grid) / moment('gaussian', 1)
    assert spec.multiplier / best == pytest.approx(WEIGHTS_OF_BEST[bits - 2], rel=0.04)
    # from the least mean error of a Gaussian to the least squared error of a Laplace distribution
    heavy = best_threshold('laplace', grid) / moment('laplace', 1)
    assert best_threshold('gaussian', grid, p=1) / moment('gaussian', 1) * 0.94 <= spec.multiplier <= heavy
    assert spec.clip_multiplier == spec.multiplier


def test_the_multiplier_of_three_levels():
    spec = WeightSpec(bits=2, grid='narrow_range')
    best = best_threshold('gaussian', reference.weight_grid(2, 'narrow_range')) / moment('gaussian', 1)
    assert spec.multiplier == pytest.approx(best, rel=0.05)


def test_scale_clip_has_a_floor_whose_fixed_point_is_uniform_unless_k_is_given():
    assert WeightSpec(bits=2, grid='narrow_range').clip_multiplier == 2
    assert WeightSpec(bits=2, grid='narrow_range', k=1.5).clip_multiplier == 1.5
    assert WeightSpec(bits=4, k=0.5).clip_multiplier == 0.5
    assert WeightSpec(bits=8).clip_multiplier == 8


@pytest.mark.parametrize('bits', range(2, 9))
def test_the_signed_grid_of_the_lehmer_rule_loses_little_to_the_best(bits):
    """It ends a step below the threshold, so the multiplier of an unsigned grid with as many steps is too low."""
    grid = reference.activation_grid(bits, True)
    threshold = ActivationSpec(bits=bits).multiplier(True) * unit('lehmer', 'gaussian', True)
    least = loss('gaussian', best_threshold('gaussian', grid), grid)
    assert loss('gaussian', threshold, grid) <= 1.015 * least
