"""Histograms against numpy on the elements themselves."""

import numpy as np
import pytest
import torch

from mmgdrq.quant import ActivationSpec
from mmgdrq.quant.ranges.histogram import (
    Bins,
    channel_histograms,
    histogram,
    percentile_of,
    points,
    search_threshold,
)

CASES = {
    'normal': lambda rng: rng.standard_normal(20_000),
    'relu': lambda rng: np.maximum(rng.standard_normal(20_000), 0),
    'silu': lambda rng: (lambda x: x / (1 + np.exp(-x)))(rng.standard_normal(20_000) * 3),
    'outliers': lambda rng: np.concatenate([rng.standard_normal(20_000), [136.0, -90.0]]),
    'negative': lambda rng: -rng.random(5_000) - 1,
    'large': lambda rng: rng.standard_normal(1_000) * 1e8,
}


@pytest.fixture(params=CASES)
def elements(request):
    return CASES[request.param](np.random.default_rng(0)).astype(np.float32)


def test_every_element_is_in_the_bin_around_it(elements):
    bins = Bins()
    edges = bins.edges().numpy()
    index = bins.index(torch.from_numpy(elements)).numpy()
    magnitude = index % bins.half
    assert ((index >= bins.half) == (elements < 0)).all()
    assert (edges[magnitude] <= np.abs(elements)).all()
    assert (np.abs(elements) < edges[magnitude + 1]).all()


def test_extreme_magnitudes_have_a_bin():
    x = torch.tensor([0.0, 1e-40, -1e-40, 3e38, -3e38])
    bins = Bins()
    assert bins.index(x).tolist() == [0, 0, bins.half, bins.half - 1, 2 * bins.half - 1]


def test_parts_add_up(elements):
    whole = histogram(torch.from_numpy(elements))
    parts = sum(histogram(torch.from_numpy(part)) for part in np.split(elements, [10, 999]))
    assert torch.equal(whole, parts)
    assert whole.sum() == len(elements)


def test_more_elements_than_are_counted_at_once(monkeypatch):
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 3, 50)).astype(np.float32))
    whole, channels = histogram(x), channel_histograms(x, Bins(3))
    monkeypatch.setattr('mmgdrq.quant.ranges.histogram.CHUNK', 7)
    assert torch.equal(histogram(x), whole)
    assert torch.equal(channel_histograms(x, Bins(3)), channels)


def test_channels_are_counted_apart():
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 3, 5, 6)).astype(np.float32))
    counts = channel_histograms(x, Bins(3))
    for channel in range(3):
        assert torch.equal(counts[channel], histogram(x[:, channel], Bins(3)))
    assert torch.equal(channel_histograms(x, Bins(3), axis=-1)[5], histogram(x[..., 5], Bins(3)))


@pytest.mark.parametrize('share', [0.0001, 0.01, 0.3, 0.5, 0.999, 0.9999])
def test_percentiles_are_those_of_numpy_up_to_a_bin(elements, share):
    expected = np.quantile(elements, share, method='inverted_cdf')
    found = percentile_of(histogram(torch.from_numpy(elements)), share).item()
    assert found == pytest.approx(expected, rel=1 / 128, abs=1e-8)


def test_the_points_stand_for_the_elements(elements):
    values, weights = points(histogram(torch.from_numpy(elements)))
    assert weights.sum().item() == pytest.approx(len(elements))
    x = elements.astype(np.float64)
    assert (values * weights).sum().item() == pytest.approx(x.sum(), abs=2e-3 * float(abs(x).sum()))
    assert (values**2 * weights).sum().item() == pytest.approx((x**2).sum(), rel=5e-3)


def error(x, threshold, levels, limits):
    step = threshold / levels
    return ((np.clip(np.rint(x / step), *limits) * step - x) ** 2).sum()


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_the_searched_threshold_is_as_good_as_the_best_of_a_fine_grid(elements, bits):
    spec, signed = ActivationSpec(bits=bits), bool((elements < 0).any())
    levels, limits = spec.levels(signed), spec.code_limits(signed)
    found = search_threshold(histogram(torch.from_numpy(elements)), levels, limits).item()
    x = elements.astype(np.float64)
    best = min(error(x, t, levels, limits) for t in np.geomspace(0.02, 1.5, 400) * abs(x).max())
    assert error(x, found, levels, limits) <= 1.1 * best


def test_a_histogram_of_zeros():
    assert search_threshold(histogram(torch.zeros(9)), 15, (0, 15)).item() == 0
    assert percentile_of(histogram(torch.zeros(9)), 0.99).item() == 0


def test_the_percentiles_at_the_ends_are_those_of_the_elements(elements):
    counts = histogram(torch.from_numpy(elements))
    for share, end in ((0.0, elements.min()), (1.0, elements.max())):
        assert float(percentile_of(counts, share)) == pytest.approx(end, rel=0.01, abs=1e-9)
