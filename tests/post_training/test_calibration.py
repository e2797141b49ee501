"""Ranges from a calibration against numpy on the inputs of the float model."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.errors import ConfigError, QuantizationError
from mmgdrq.layers.walk import activation_quantizers
from tests.helpers.nets import SharedHead


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    model.train()(torch.randn(8, 3, 12, 12))  # statistics of BN that are not those of its start
    return model


def batches(seed=1, sizes=(4, 1, 7)):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 12, 12, generator=rng) * (number + 1) for number, size in enumerate(sizes)]


def inputs_in_float(model, images):
    """Inputs of the three convolutions over all images, as numpy arrays."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        x = torch.cat(images)
        seen = [x, model[:3](x), model[:6](x)]
    return [x.double().numpy() for x in seen]


def thresholds(model):
    return [quantizer.threshold.item() for quantizer in activation_quantizers(model)]


def calibrated(images=None, model=None, **activation):
    model = model or network()
    activation = dict(bits=8, grid='symmetric', **activation)
    report = mmgdrq.calibrate(model, images or batches(), progress=False, activation=activation)
    return model, report


def test_minmax_is_that_of_all_elements():
    model, _ = calibrated(range='minmax')
    expected = [np.abs(x).max() for x in inputs_in_float(network(), batches())]
    assert thresholds(model) == pytest.approx(expected, rel=1e-5)
    assert [bool(q.signed) for q in activation_quantizers(model)] == [True, False, True]


def test_means_count_every_element_the_same():
    model, _ = calibrated(range='mean', k=3.0)
    expected = [3 * np.abs(x).mean() for x in inputs_in_float(network(), batches())]
    assert thresholds(model) == pytest.approx(expected, rel=1e-5)


def test_search_looks_at_all_elements():
    model, _ = calibrated(range='search')
    for quantizer, x in zip(activation_quantizers(model), inputs_in_float(network(), batches())):
        signed = bool(quantizer.signed)
        levels, limits = (128, (-128, 127)) if signed else (255, (0, 255))

        def error(threshold, x=x, levels=levels, limits=limits):
            step = threshold / levels
            return ((np.clip(np.rint(x / step), *limits) * step - x) ** 2).sum()

        best = min(error(t) for t in np.geomspace(0.1, 1.4, 200) * np.abs(x).max())
        assert error(quantizer.threshold.item()) <= 1.1 * best


def test_a_map_that_is_zero_at_regular_places_has_a_range():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    image = torch.zeros(32, 3, 64, 64)
    image[..., 1::2] = 1
    mmgdrq.calibrate(model, [image], progress=False, activation=dict(bits=8, grid='symmetric', range='search'))
    quantizer = model[0].activation_quantizer
    torch.testing.assert_close(quantizer(image), image, rtol=0, atol=0.005)


def test_neither_the_order_nor_the_cut_of_the_batches_decides():
    together = calibrated([torch.cat(batches())], range='lehmer')[0]
    reverse = calibrated(batches()[::-1], range='lehmer')[0]
    assert thresholds(reverse) == pytest.approx(thresholds(together), rel=1e-6)


def test_it_repeats_bit_for_bit():
    first, second = calibrated()[0].state_dict(), calibrated()[0].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_only_ranges_change():
    before, model = network().state_dict(), calibrated()[0]
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert mmgdrq.get_stage(model) == 'quantize'


def test_it_ends_earlier_ranges():
    model = network()
    mmgdrq.quantize(model, weight=dict(bits=4, range='search'), activation=dict(bits=4, range='minmax'))
    model.train()(100 * batches()[0])
    with torch.no_grad():
        model[3].weight.mul_(10)
    mmgdrq.calibrate(model, batches(), progress=False)
    fresh = network()
    with torch.no_grad():
        fresh[3].weight.mul_(10)
    fresh[1].load_state_dict(model[1].state_dict())
    fresh[4].load_state_dict(model[4].state_dict())
    plan = mmgdrq.plan(network(), weight=dict(bits=4, range='search'), activation=dict(bits=4, range='minmax'))
    mmgdrq.calibrate(fresh, batches(), progress=False, plan=plan)
    assert thresholds(model) == thresholds(fresh)
    assert torch.equal(model[3].weight_quantizer.alpha, fresh[3].weight_quantizer.alpha)


def test_the_outputs_of_8_bits_are_near_those_in_float():
    expected = network().eval()(batches()[0])
    found = calibrated()[0](batches()[0])
    assert (found - expected).norm() < 0.04 * expected.norm()


def test_it_saves_loads_trains_and_folds():
    model, report = calibrated()
    other = mmgdrq.quantize(network(), plan=report.plan).eval()
    other.load_state_dict(model.state_dict())
    x = batches()[2]
    assert torch.equal(other(x), model(x))
    torch.testing.assert_close(mmgdrq.fold(model)(x), model(x), rtol=1e-4, atol=1e-5)
    model.train()(x).square().mean().backward()
    assert model[3].weight.grad.abs().sum() > 0


def test_a_layer_that_is_called_on_several_levels_has_one_range():
    torch.manual_seed(0)
    model = SharedHead()
    levels = [torch.rand(2, 3, 8, 8), 5 * torch.rand(2, 3, 4, 4)]
    expected = max(F.relu(model.stem(x)).max().item() for x in levels)
    mmgdrq.calibrate(model, [(levels,)], progress=False, activation=dict(bits=8, range='minmax'))
    assert model.tower.activation_quantizer.threshold.item() == pytest.approx(expected, rel=1e-5)


def test_the_report_holds_ranges_and_errors():
    model, report = calibrated(range='minmax')
    names = [layer.name for layer in report.layers]
    assert names == ['0', '3', '6']
    x = inputs_in_float(network(), batches()[:1])[1]
    conv = network()[3]
    weight = conv.weight.detach().double()
    rounded = model[3].weight_quantizer(conv.weight).detach().double()
    layer = report.layers[1]
    assert layer.range == pytest.approx((0, model[3].activation_quantizer.threshold.item()))
    assert layer.weight_error == pytest.approx(((rounded - weight).norm() / weight.norm()).item(), rel=1e-4)
    step = layer.range[1] / 255
    quantized = torch.from_numpy(np.clip(np.rint(x / step), 0, 255) * step)
    bias = conv.bias.detach().double()
    expected, found = F.conv2d(torch.from_numpy(x), weight, bias), F.conv2d(quantized, rounded, bias)
    assert layer.output_error == pytest.approx(((found - expected).norm() / expected.norm()).item(), rel=0.02)
    assert report.batches == 3


def test_the_report_is_a_table_and_json():
    _, report = calibrated()
    lines = str(report).splitlines()
    assert lines[0].split('  ')[0] == 'layer'
    assert len(lines) == 2 + 3 + 1
    data = json.loads(report.to_json())
    assert data['layers'][1]['name'] == '3'
    assert mmgdrq.Plan.from_json(json.dumps(data['plan'])) == report.plan


def test_layers_without_a_call_are_named():
    class Unused(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    model = Unused(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    report = mmgdrq.calibrate(model, [torch.rand(1, 3, 4, 4)], progress=False)
    assert report.uncalled == ['1']
    assert report.layers[1].output_error is None
    assert str(report).endswith('not called, so without an input range: 1')


def test_a_function_runs_the_batches():
    pairs = [[images, torch.zeros(len(images))] for images in batches()]
    model = network()
    seen = []
    bar = lambda items: (seen.append(item) or item for item in items)  # noqa: E731
    mmgdrq.calibrate(model, iter(pairs), lambda model, batch: model(batch[0]), bar)
    assert len(seen) == 3
    assert thresholds(model) == thresholds(calibrated()[0])


def test_wrong_use_is_refused():
    with pytest.raises(ConfigError, match='there is no batch'):
        mmgdrq.calibrate(network(), [])
    with pytest.raises(ConfigError, match='run=lambda model, batch'):
        mmgdrq.calibrate(network(), [[torch.rand(1, 3, 8, 8), 0]], progress=False)
    with pytest.raises(ConfigError, match='come too late'):
        mmgdrq.calibrate(calibrated()[0], batches(), weight=dict(bits=4))
    with pytest.raises(ConfigError, match='unknown key'):
        mmgdrq.calibrate(network(), batches(), activation=dict(bit=8))


def test_an_input_that_is_not_finite_is_an_error_with_the_name_of_the_layer():
    model = network()
    with pytest.raises(QuantizationError, match=r'^0: its input is not finite'):
        mmgdrq.calibrate(model, [torch.full((1, 3, 8, 8), float('nan'))], progress=False)


def test_an_error_leaves_no_hook():
    model = mmgdrq.quantize(network())
    with pytest.raises(ZeroDivisionError):
        mmgdrq.calibrate(model, batches(), lambda model, batch: 1 / 0, progress=False)
    assert not any(quantizer._forward_pre_hooks for quantizer in activation_quantizers(model))
    assert mmgdrq.get_stage(model) == 'quantize'
