"""Affine grids against numpy, as ONNX QuantizeLinear and DequantizeLinear define them."""

import numpy as np
import pytest
import torch

from mmgdrq.quant.affine import affine_bounds, affine_grid, affine_integers, clip_affine, fake_quantize_affine

RANGES = [(-0.28, 20.0), (0.0, 6.0), (0.5, 6.0), (-3.0, 3.0), (-4.0, -1.0), (-1e-3, 1e4), (0.0, 0.0)]


def onnx(x, scale, zero_point, bits):
    """QuantizeLinear: saturate(round(x / scale) + zero_point)."""
    return np.clip(np.rint(x / scale) + zero_point, 0, 2**bits - 1)


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('ends', RANGES[:6])
def test_the_grid_reaches_from_low_to_high_and_holds_zero(ends, bits):
    scale, zero_point = (t.item() for t in affine_grid(*map(torch.tensor, ends), bits))
    low, high = min(ends[0], 0), max(ends[1], 0)
    assert zero_point == int(zero_point)
    assert 0 <= zero_point <= 2**bits - 1
    assert scale == pytest.approx(max((high - low) / (2**bits - 1), 1e-12))
    assert -zero_point * scale == pytest.approx(low, abs=0.51 * scale)
    assert (2**bits - 1 - zero_point) * scale == pytest.approx(high, abs=0.51 * scale)


def test_a_symmetric_grid_has_its_zero_in_the_middle():
    scale, zero_point = affine_grid(torch.tensor(-1.0), torch.tensor(12.7), 8, symmetric=True)
    assert (scale.item(), zero_point.item()) == (pytest.approx(0.1), 128)


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('ends', RANGES[:6])
def test_codes_and_values_are_those_of_onnx(ends, bits):
    scale, zero_point = affine_grid(*map(torch.tensor, ends), bits)
    x = np.random.default_rng(0).uniform(1.5 * ends[0] - 1, 1.5 * ends[1] + 1, 5000).astype(np.float32)
    codes = onnx(x, scale.numpy(), zero_point.numpy(), bits)
    found = affine_integers(torch.from_numpy(x), scale, zero_point, bits)
    assert np.array_equal(found.numpy(), codes - zero_point.item())
    values = fake_quantize_affine(torch.from_numpy(x), scale, zero_point, bits)
    assert np.array_equal(values.numpy(), (codes - zero_point.numpy()) * scale.numpy())


def test_zero_stays_zero():
    for ends in RANGES:
        grid = affine_grid(*map(torch.tensor, ends), 4)
        assert fake_quantize_affine(torch.zeros(3), *grid, 4).tolist() == [0, 0, 0]


def test_one_grid_per_channel():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32) * 5)
    low, high = torch.tensor([-1.0, -8.0, 0.0]), torch.tensor([9.0, 1.0, 2.0])
    scale, zero_point = affine_grid(low, high, 8)
    found = fake_quantize_affine(x, scale.reshape(-1, 1, 1), zero_point.reshape(-1, 1, 1), 8)
    for c in range(3):
        assert torch.equal(found[:, c], fake_quantize_affine(x[:, c], scale[c], zero_point[c], 8))


def test_the_gradient_passes_inside_the_grid():
    grid = affine_grid(torch.tensor(-1.0), torch.tensor(3.0), 2)
    low, high = (end.item() for end in affine_bounds(*grid, 2))
    x = torch.tensor([low - 0.1, low, -0.4, 0.0, 2.5, high, high + 0.1], requires_grad=True)
    for function in (fake_quantize_affine, clip_affine):
        weights = torch.arange(1.0, 8.0)
        (gradient,) = torch.autograd.grad((function(x, *grid, 2) * weights).sum(), x)
        assert gradient.tolist()[0] == gradient.tolist()[-1] == 0
        assert gradient.tolist()[2:5] == [3, 4, 5]


def test_the_dtype_stays():
    grid = affine_grid(torch.tensor(-1.0), torch.tensor(3.0), 8)
    assert fake_quantize_affine(torch.zeros(2, dtype=torch.bfloat16), *grid, 8).dtype == torch.bfloat16
