"""Rounding and its gradients against the numpy reference, bit by bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgdrq.quant import (
    WeightSpec,
    clip_activation,
    dequantize,
    fake_quantize_activation,
    fake_quantize_learned,
    fake_quantize_weight,
    quantize,
    step_of,
    weight_step,
)
from mmgdrq.quant.specs import GRIDS
from tests.helpers import reference

FILTERS = 6
BITS = range(2, 9)


def tensor(seed, *shape, scale=1.0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape) * scale, dtype=torch.float32)


def weight_with_ties(seed, alphas, group_size, levels, offset):
    """Random weights, a third of them exactly on a boundary between two codes."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(FILTERS, 3, 2, 2)).astype(np.float32)
    for part, alpha in zip(reference.groups(FILTERS, group_size), alphas):
        boundaries = rng.integers(-levels - 2, levels + 2, size=weight[part].shape) + 0.5 + offset
        ties = boundaries * reference.step(alpha, levels)
        weight[part] = np.where(rng.random(weight[part].shape) < 1 / 3, ties, weight[part])
    return weight


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('group_size', [1, 3, 4, FILTERS, -1, 100])
@pytest.mark.parametrize('bits', BITS)
def test_weight_equals_the_reference(bits, group_size, grid):
    spec = WeightSpec(bits=bits, group_size=group_size, grid=grid)
    grid = spec.effective_grid
    count = len(reference.groups(FILTERS, group_size))
    alphas = np.linspace(0.4, 1.9, count, dtype=np.float32)
    weight = weight_with_ties(bits, alphas, group_size, *reference.weight_grid(bits, grid)[2:])
    x = torch.from_numpy(weight).requires_grad_()
    step = weight_step(x, torch.from_numpy(alphas), spec)
    result = fake_quantize_weight(x, step, spec.code_limits, spec.offset)
    expected = reference.fake_quantize_weight(weight, alphas, bits, group_size, grid)
    assert np.array_equal(result.detach().numpy(), expected)
    codes = quantize(x.detach(), step, spec.code_limits, spec.offset)
    assert torch.equal(result.detach(), dequantize(codes, step, spec.offset))
    upstream = tensor(1, *weight.shape)
    result.backward(upstream)
    assert np.array_equal(x.grad.numpy(), reference.weight_gradient(weight, upstream.numpy()))


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('bits', BITS)
def test_activation_equals_the_reference(bits, signed):
    threshold = np.float32(1.3)
    low, high, levels, _ = grid = reference.activation_grid(bits, signed)
    ties = (np.arange(low - 2, high + 3, dtype=np.float32) + np.float32(0.5)) * reference.step(threshold, levels)
    edges = np.array([0, -0.0, threshold, -threshold, np.nextafter(threshold, 2, dtype=np.float32)], np.float32)
    edges = np.append(edges, -edges[-1])
    values = np.concatenate([tensor(bits, 200, scale=1.5).numpy(), ties, edges]).astype(np.float32)
    x = torch.from_numpy(values).requires_grad_()
    result = fake_quantize_activation(x, torch.tensor(threshold), levels, (low, high))
    assert np.array_equal(result.detach().numpy(), reference.fake_quantize_activation(values, threshold, bits, signed))
    step = step_of(torch.tensor(threshold), levels)
    codes = quantize(x.detach(), step, (low, high))
    assert torch.equal(result.detach(), dequantize(codes, step))
    assert np.array_equal(codes.numpy(), reference.codes(values, threshold, grid))
    upstream = tensor(2, *values.shape)
    result.backward(upstream)
    expected = reference.activation_gradient(values, threshold, signed, upstream.numpy())
    assert np.array_equal(x.grad.numpy(), expected)
    assert 0 < np.count_nonzero(expected) < expected.size


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30),
    st.floats(0, 2.0**100, width=32),
    st.integers(2, 8),
    st.sampled_from(GRIDS),
)
def test_any_finite_value_and_range(values, alpha, bits, grid):
    spec = WeightSpec(bits=bits, grid=grid, group_size=-1)
    weight = np.array(values, np.float32)[None]
    step = weight_step(torch.from_numpy(weight), torch.tensor([alpha]), spec)
    codes = quantize(torch.from_numpy(weight), step, spec.code_limits, spec.offset)
    result = fake_quantize_weight(torch.from_numpy(weight), step, spec.code_limits, spec.offset)
    assert torch.equal(result, dequantize(codes, step, spec.offset))
    with np.errstate(over='ignore'):
        expected = reference.fake_quantize_weight(weight, np.array([alpha], np.float32), bits, -1, spec.effective_grid)
    assert np.array_equal(result.numpy(), expected)
    assert bool(result.isfinite().all())
    assert bool((codes == codes.round()).all())
    assert spec.code_limits[0] <= float(codes.min())
    assert float(codes.max()) <= spec.code_limits[1]


def test_rounding_is_half_to_even():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert quantize(x, torch.tensor(1.0), (-4, 3)).tolist() == [-2, -2, 0, 0, 2, 2]


def test_two_bit_levels():
    x = torch.linspace(-3, 3, 601)
    levels = fake_quantize_weight(x, step_of(torch.tensor(1.0), 2), (-2, 1)).unique()
    assert levels.tolist() == [-1, -0.5, 0, 0.5]
    ternary = fake_quantize_weight(x, step_of(torch.tensor(1.0), 1), (-1, 1)).unique()
    assert ternary.tolist() == [-1, 0, 1]


def test_quantizing_twice_changes_nothing():
    spec = WeightSpec(bits=4)
    x = tensor(0, FILTERS, 5)
    step = weight_step(x, torch.full((FILTERS,), 1.25), spec)
    once = fake_quantize_weight(x, step, spec.code_limits)
    assert torch.equal(fake_quantize_weight(once, step, spec.code_limits), once)


@pytest.mark.parametrize('value', [0.0, 1e-45, 1e-39, -1e-30])
def test_zero_groups_and_denormal_values_stay_finite(value):
    x = torch.full((2, 3), value, requires_grad=True)
    spec = WeightSpec(bits=2)
    step = weight_step(x, x.detach().abs().mean(1) * 2, spec)
    result = fake_quantize_weight(x, step, spec.code_limits)
    result.sum().backward()
    assert bool(result.isfinite().all())
    assert torch.equal(result.detach(), torch.zeros(2, 3))
    assert torch.equal(x.grad, torch.ones(2, 3))
    threshold = torch.tensor(0.0)
    assert torch.equal(fake_quantize_activation(x.detach(), threshold, 15, (0, 15)), torch.zeros(2, 3))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept_and_computed_in_float32(dtype):
    x = tensor(4, 40, scale=1.0).to(dtype).requires_grad_()
    threshold = torch.tensor(1.1)
    expected = reference.fake_quantize_activation(x.detach().float().numpy(), 1.1, 4, True)
    results = [
        fake_quantize_activation(x, threshold, 8, (-8, 7)),
        fake_quantize_weight(x, step_of(threshold, 8), (-8, 7)),
        fake_quantize_learned(x, step_of(threshold, 8), (-8, 7)),
    ]
    for result in results:
        assert result.dtype == dtype
        assert torch.equal(result.detach(), torch.from_numpy(expected).to(dtype))
        (gradient,) = torch.autograd.grad(result.sum(), x)
        assert gradient.dtype == dtype
    clipped = clip_activation(x, threshold, signed=True)
    assert clipped.dtype == dtype


@pytest.mark.parametrize('signed', [False, True])
def test_clip_only_clips(signed):
    values = np.append(tensor(5, 50, scale=2.0).numpy(), np.float32([1.25, -1.25, 0]))
    x = torch.from_numpy(values).requires_grad_()
    result = clip_activation(x, torch.tensor(1.25), signed)
    low = np.float32(-1.25 if signed else 0)
    assert np.array_equal(result.detach().numpy(), np.clip(values, low, np.float32(1.25)))
    upstream = tensor(6, *values.shape)
    result.backward(upstream)
    expected = reference.activation_gradient(values, 1.25, signed, upstream.numpy())
    assert np.array_equal(x.grad.numpy(), expected)


def lsq_by_autograd(x, step, limits, factor):
    """LSQ written with detach: autograd does the rest."""
    scaled_step = step * factor + (step - step * factor).detach()
    scaled = (x / scaled_step).clamp(*limits)
    rounded = scaled + (scaled.round() - scaled).detach()
    return rounded * scaled_step


@pytest.mark.parametrize('limits', [(-2, 1), (-7, 7), (0, 15), (-128, 127)])
@pytest.mark.parametrize('shape', [(), (4, 1, 1)])
def test_learned_step_gradient_equals_autograd(limits, shape):
    x = tensor(7, 4, 30, 3, scale=1.5)
    step = torch.full(shape, 2.0 / max(limits[1], 1)) * (1 + 0.1 * tensor(8, *shape).abs())
    upstream = tensor(9, *x.shape)
    shared = x.numel() // step.numel()
    grads = []
    for call in (
        lambda x, s: fake_quantize_learned(x, s, limits),
        lambda x, s: lsq_by_autograd(x, s, limits, (shared * max(limits[1], 1)) ** -0.5),
    ):
        a, s = x.clone().requires_grad_(), step.clone().requires_grad_()
        result = call(a, s)
        result.backward(upstream)
        grads.append((result.detach(), a.grad, s.grad))
    for mine, theirs in zip(*grads):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert bool((grads[0][2].abs() > 0).all())


def test_learned_step_with_a_given_gradient_scale():
    x = tensor(10, 64)
    grads = []
    for scale in (1.0, 0.25):
        step = torch.tensor(0.4, requires_grad=True)
        fake_quantize_learned(x, step, (-2, 1), scale).square().sum().backward()
        grads.append(float(step.grad))
    assert grads[0] != 0
    assert grads[1] == pytest.approx(grads[0] / 4, rel=1e-6)


def test_steps_get_no_gradient_where_they_are_constants():
    x = tensor(11, 3, 4).requires_grad_()
    step = torch.full((3, 1), 0.5, requires_grad=True)
    fake_quantize_weight(x, step, (-2, 1)).sum().backward()
    assert step.grad is None
    assert x.grad is not None


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('group_size', [1, 4, -1])
def test_half_precision_weights_take_their_groups_float32_steps(dtype, group_size):
    spec = WeightSpec(bits=4, group_size=group_size)
    weight = tensor(12, FILTERS, 3, 2).to(dtype)
    alphas = np.linspace(0.5, 2.1, len(reference.groups(FILTERS, group_size)), dtype=np.float32)
    step = weight_step(weight, torch.from_numpy(alphas), spec)
    assert step.dtype == torch.float32
    result = fake_quantize_weight(weight, step, spec.code_limits)
    expected = reference.fake_quantize_weight(weight.float().numpy(), alphas, 4, group_size)
    assert torch.equal(result, torch.from_numpy(expected).to(dtype))


@pytest.mark.parametrize('value', [0.7, -0.7, 1e30, -3e38])
@pytest.mark.parametrize('grid', GRIDS)
def test_a_constant_group_is_kept_or_clipped_at_its_own_range(value, grid):
    spec = WeightSpec(bits=3, group_size=-1, grid=grid)
    weight = np.full((2, 4), value, np.float32)
    alpha = np.abs(weight[0, :1])
    step = weight_step(torch.from_numpy(weight), torch.from_numpy(alpha), spec)
    result = fake_quantize_weight(torch.from_numpy(weight), step, spec.code_limits, spec.offset)
    assert np.array_equal(result.numpy(), reference.fake_quantize_weight(weight, alpha, 3, -1, grid))
    # the two's complement grid ends one step below +alpha, the midrise grid half a step before either end
    lost = {'twos_complement': 0.25 * (value > 0), 'narrow_range': 0.0, 'midrise': 0.125}[grid]
    assert float(result[0, 0]) == pytest.approx(value * (1 - lost), rel=1e-6)


def test_clipping_remembers_the_threshold_of_its_forward_pass():
    x = torch.tensor([0.5, 1.5], requires_grad=True)
    threshold = torch.tensor(1.0)
    result = clip_activation(x, threshold, signed=False)
    threshold.fill_(9.0)  # as the running threshold does, before the backward pass
    result.sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]
