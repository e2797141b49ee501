"""A searched range and its renewal from one iteration to the next."""

import numpy as np
import pytest
import torch

from mmgdrq.quant import WeightSpec, improve_weight_range, weight_range
from mmgdrq.quant.specs import GRIDS
from tests.helpers import reference

CASES = [(bits, grid, p) for bits in (2, 3, 4, 8) for grid in GRIDS for p in (1, 2)]


def spec_of(bits, grid, p, group_size=1):
    return WeightSpec(bits=bits, grid=grid, p=p, group_size=group_size, range='search')


def loss(weight, alpha, spec):
    """Mean over the groups, by the numpy reference."""
    grid = reference.weight_grid(spec.bits, spec.effective_grid)
    parts = reference.groups(len(weight), spec.group_size)
    rows = weight.numpy()
    return np.mean([reference.quantized_loss(rows[part], float(a), grid, spec.p) for part, a in zip(parts, alpha)])


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('p', [1, 2])
@pytest.mark.parametrize('bits', [2, 4])
def test_a_smaller_last_group_is_searched_as_if_alone(bits, p, grid):
    weight = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    spec = spec_of(bits, grid, p, group_size=4)
    alone = weight_range(weight[4:].clone(), spec_of(bits, grid, p, group_size=-1))
    assert weight_range(weight, spec)[1].item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize(('bits', 'grid', 'p'), CASES)
@pytest.mark.parametrize('group_size', [1, 4, -1])
def test_a_renewal_is_never_worse(bits, grid, p, group_size):
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(bits))
    spec = spec_of(bits, grid, p, group_size)
    for factor in (0.3, 0.9, 1.0, 1.05):
        alpha = weight_range(weight, spec) * factor
        assert loss(weight, improve_weight_range(weight, alpha, spec), spec) <= loss(weight, alpha, spec) * (1 + 1e-5)


@pytest.mark.parametrize(('bits', 'grid', 'p'), CASES)
def test_renewals_follow_a_weight_that_moves(bits, grid, p):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 400, generator=generator)
    spec = spec_of(bits, grid, p)
    alpha = weight_range(weight, spec)
    for _ in range(200):
        weight += 0.03 * torch.randn(weight.shape, generator=generator)
        weight *= 0.995
        alpha = improve_weight_range(weight, alpha, spec)
    # at 8 bits the loss of a finite sample has many narrow dips
    assert loss(weight, alpha, spec) <= loss(weight, weight_range(weight, spec), spec) * (1.02 if bits < 8 else 1.1)


@pytest.mark.parametrize('p', [1, 2])
@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('scale', [1e-3, 1e3])
def test_renewals_recover_from_a_weight_that_was_replaced(scale, grid, p):
    weight = torch.randn(4, 300, generator=torch.Generator().manual_seed(1))
    spec = spec_of(2, grid, p)
    best = weight_range(weight, spec)
    alpha = best * scale
    for _ in range(400):
        alpha = improve_weight_range(weight, alpha, spec)
    assert loss(weight, alpha, spec) <= loss(weight, best, spec) * 1.02


@pytest.mark.parametrize('p', [1, 2])
@pytest.mark.parametrize('grid', GRIDS)
def test_a_zero_weight_that_grows_gets_a_range(grid, p):
    spec = spec_of(2, grid, p)
    alpha = weight_range(torch.zeros(3, 200), spec)
    assert alpha.tolist() == [0, 0, 0]
    assert improve_weight_range(torch.zeros(3, 200), torch.ones(3), spec).tolist() == [0, 0, 0]
    weight = torch.randn(3, 200, generator=torch.Generator().manual_seed(2))
    for _ in range(30):
        alpha = improve_weight_range(weight, alpha, spec)
    assert loss(weight, alpha, spec) <= loss(weight, weight_range(weight, spec), spec) * 1.02


@pytest.mark.parametrize('p', [1, 2])
def test_zero_and_huge_groups_stay_finite(p):
    weight = torch.stack([torch.zeros(8), torch.full((8,), 3e30), torch.full((8,), 1e-42)])
    spec = spec_of(4, 'twos_complement', p)
    alpha = weight_range(weight, spec)
    for _ in range(3):
        alpha = improve_weight_range(weight, alpha, spec)
    assert bool(alpha.isfinite().all())
    assert bool((alpha >= 0).all())
    assert loss(weight[1:2], alpha[1:2], spec) < 0.2
