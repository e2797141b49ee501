"""The rule 'search' for inputs: all elements of all calls count, whatever their shapes."""

import numpy as np
import pytest
import torch

import mmgdrq
from mmgdrq.quant import ActivationSpec, add_statistic_, collect, threshold_of
from mmgdrq.quant.ranges.histogram import Bins, _count_in_lanes, histogram
from tests.helpers import reference

BITS = (2, 4, 8)


def found(calls, spec, signed=False):
    total = collect(calls[0], spec, signed)
    for call in calls[1:]:
        add_statistic_(total, collect(call, spec, signed), spec)
    return float(threshold_of(total, spec, signed))


def loss(x, threshold, spec, signed=False):
    return reference.quantized_loss(x.numpy().ravel(), threshold, reference.activation_grid(spec.bits, signed), spec.p)


def best_loss(x, spec, signed=False):
    largest = float(x.abs().max())
    return min(loss(x, factor * largest, spec, signed) for factor in np.linspace(0.02, 1.4, 200))


@pytest.mark.parametrize('width', range(1, 60, 2))
def test_no_shape_hides_the_elements(width):
    """Every n-th element of this map, for n that a sample of any size would take, is zero padding."""
    padded = torch.zeros(40, 11, width)
    padded[:, 5, width // 2] = torch.rand(40, generator=torch.Generator().manual_seed(0)) + 0.5
    for spec in (ActivationSpec(range='search'), ActivationSpec(range='learned'), ActivationSpec(range='percentile')):
        assert found([padded], spec) > 0.4


def test_a_layer_of_padded_maps_is_not_dead():
    x = torch.zeros(32, 16, 23, 23)  # 8464 elements an image, a multiple of the stride of 4096 elements in 270,848
    x[..., 1:-1, 1:-1] = torch.rand(32, 16, 21, 21, generator=torch.Generator().manual_seed(1))
    x = x.flatten()
    stride = max(x.numel() // 4096, 1) | 1
    x[::stride] = 0
    layer = mmgdrq.Conv2d(16, 4, 1, activation=dict(bits=4, range='search')).train()
    output = layer(x.view(32, 16, 23, 23))
    assert 0.5 < float(layer.activation_quantizer.threshold) < 1.2
    assert output.flatten(1).std(1).min() > 0


@pytest.mark.parametrize('bits', BITS)
@pytest.mark.parametrize('p', [1, 2])
@pytest.mark.parametrize('signed', [False, True])
def test_calls_of_unequal_size_count_by_their_elements(bits, p, signed):
    rng = np.random.default_rng(bits)
    calls = [rng.normal(size=30_000) * 0.1, rng.normal(size=300) * 3, rng.standard_t(3, size=3_000)]
    calls = [torch.from_numpy(call.astype(np.float32)) for call in calls]
    calls = calls if signed else [call.relu() for call in calls]
    spec = ActivationSpec(bits=bits, range='search', p=p)
    joined = torch.cat(calls)
    threshold = found(calls, spec, signed)
    assert threshold == found([joined], spec, signed) == found(calls[::-1], spec, signed)
    # a mean of the ranges of the calls would be 3 to 40 % off; at 8 bits the loss has many narrow dips
    assert loss(joined, threshold, spec, signed) <= best_loss(joined, spec, signed) * (1.01 if bits < 8 else 1.06)


def test_only_zeros_have_no_use_for_a_threshold_and_others_have_one_above_zero():
    spec = ActivationSpec(range='search')
    for value in (1e-40, 1e-12, 1e-9, 1.0, 1e30):
        assert found([torch.tensor([0.0, 0.0, value])], spec) > 0
        assert found([torch.tensor([0.0, 0.0, value])], ActivationSpec(range='percentile')) > 0
    many = torch.zeros(10**6)
    many[7] = 2.0
    assert loss(many, found([many], spec), spec) < 0.02
    assert found([many], ActivationSpec(range='percentile')) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize('rule', ['search', 'percentile'])
@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_elements_that_are_not_finite_give_no_range(rule, bad):
    spec = ActivationSpec(range=rule)
    assert np.isnan(found([torch.ones(5), torch.tensor([1.0, bad])], spec))
    assert np.isnan(float(threshold_of(torch.zeros_like(collect(torch.ones(3), spec, False)), spec, False)))
    assert np.isfinite(found([torch.tensor([3e38, -3e38])], spec, signed=True))


def test_several_layers_at_once():
    spec = ActivationSpec(range='search')
    calls = [torch.rand(100), torch.rand(100) * 7, torch.rand(50) * 1e-3]
    together = threshold_of(torch.stack([collect(call, spec, False) for call in calls]), spec, False)
    assert together.tolist() == [found([call], spec) for call in calls]


def test_percentiles_leave_outliers_out():
    x = torch.rand(10**5, generator=torch.Generator().manual_seed(0))
    x[:5] = 136.0
    spec = ActivationSpec(range='percentile', percentile=99.99)
    assert found([x], spec) == pytest.approx(float(np.quantile(x.numpy(), 0.9999)), rel=0.02)
    assert found([x], ActivationSpec(range='percentile', percentile=100)) == pytest.approx(136, rel=0.04)


def test_the_histogram_of_a_gpu_is_that_of_a_cpu():
    bins = Bins(5)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).relu()
    assert torch.equal(_count_in_lanes(bins.index(x), 2 * bins.half), histogram(x, bins))
