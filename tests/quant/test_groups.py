"""Groups of filters against the numpy reference."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgdrq.quant import group_max_abs, group_mean_abs, num_groups, per_filter
from tests.helpers import reference

SIZES = st.one_of(st.just(-1), st.integers(1, 12), st.just(10**6))


@given(st.integers(1, 10), SIZES, st.integers(1, 5), st.integers(0, 1000))
def test_statistics_of_groups(filters, group_size, inner, seed):
    weight = np.random.default_rng(seed).normal(size=(filters, inner, 2, 1)).astype(np.float32)
    parts = reference.groups(filters, group_size)
    tensor = torch.from_numpy(weight)
    assert num_groups(filters, group_size) == len(parts)
    means = group_mean_abs(tensor, group_size)
    np.testing.assert_allclose(means.numpy(), reference.mean_abs(weight, group_size), rtol=1e-6)
    assert group_max_abs(tensor, group_size).tolist() == [np.abs(weight[part]).max() for part in parts]


@pytest.mark.parametrize('kernels', [False, True])
@given(st.integers(1, 9), SIZES, st.integers(1, 40), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.integers(0, 1000))
def test_exact_zeros_do_not_count(kernels, filters, group_size, inner, zeros, seed):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(filters, inner)) * (rng.random((filters, inner)) >= zeros)).astype(np.float32)
    expected = []
    for part in reference.groups(filters, group_size):
        kept = weight[part][weight[part] != 0].astype(np.float64)
        expected.append(np.abs(kept).mean() if kept.size else 0.0)
    for layout in (torch.from_numpy(weight), torch.from_numpy(np.asfortranarray(weight))):
        np.testing.assert_allclose(group_mean_abs(layout, group_size, kernels).numpy(), expected, rtol=1e-6)


@given(st.integers(1, 10), SIZES)
def test_every_filter_gets_the_value_of_its_group(filters, group_size):
    parts = reference.groups(filters, group_size)
    values = per_filter(torch.arange(1.0, len(parts) + 1), filters, group_size)
    expected = [float(number) for number, part in enumerate(parts, 1) for _ in range(part.start, part.stop)]
    assert values.tolist() == expected


def test_two_dimensional_weights():
    weight = torch.tensor([[1.0, -3.0], [0.0, 4.0], [-6.0, 6.0]])
    assert group_mean_abs(weight, 2).tolist() == [pytest.approx(8 / 3), 6.0]
    assert group_mean_abs(weight, -1).tolist() == [4.0]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    weight = torch.full((2, 4096, 3, 3), 3.0, dtype=dtype)  # a float16 sum would overflow
    mean = group_mean_abs(weight, -1)
    assert mean.dtype == torch.float32
    assert mean.tolist() == [3.0]
    assert group_max_abs(weight, 1).dtype == torch.float32


def test_no_gradient_and_no_change():
    weight = torch.randn(3, 2, requires_grad=True)
    before = weight.detach().clone()
    assert not group_mean_abs(weight, 2).requires_grad
    assert torch.equal(weight, before)


def test_a_nan_stays_in_its_group():
    weight = torch.ones(4, 2)
    weight[0, 0] = float('nan')
    means = group_mean_abs(weight, 2)
    assert bool(means[0].isnan())
    assert float(means[1]) == 1.0
