"""What is added to the package from outside, without editing it."""

import numpy as np
import pytest
import torch

import mmgdrq
from mmgdrq.errors import ConfigError
from mmgdrq.quant import ActivationSpec, Range, RangeRule, WeightSpec, register_range_rule
from tests.helpers.nets import inputs, small_net


@register_range_rule('rms')
class RootMeanSquare(RangeRule):
    """Three times the root mean square, of weights and of inputs."""

    def of_weight(self, weight, spec):
        assert spec.group_size == 1
        return weight.detach().flatten(1).square().mean(1).sqrt() * 3

    def collect(self, x, spec, signed):
        return torch.stack([x.double().square().sum(), torch.tensor(x.numel(), dtype=torch.float64)])

    def range_of(self, statistic, spec, signed):
        squares, count = statistic.unbind(-1)
        return Range.up_to((squares / count).sqrt() * 3, signed)


@register_range_rule('counts')
class Counts(RangeRule):
    """A statistic of another shape: how many elements lie below 1, 2 and 4."""

    shape = (3, 1)

    def collect(self, x, spec, signed):
        return torch.stack([(x.abs() < bound).double().sum() for bound in (1, 2, 4)])[:, None]

    def is_empty(self, statistic):
        return statistic[..., -1, 0] == 0

    def range_of(self, statistic, spec, signed):
        share = statistic[..., :, 0] / statistic[..., -1:, 0]
        index = (share < 0.9).sum(-1).clamp(max=2)
        threshold = torch.tensor([1.0, 2.0, 4.0])[index]
        return Range.up_to(torch.where(self.is_empty(statistic), torch.nan, threshold), signed)


def rms(x):
    return 3 * float(np.sqrt(np.mean(np.square(np.float64(x)))))


def test_a_range_rule_from_outside_quantizes_weights_and_inputs():
    net = mmgdrq.quantize(small_net(), weight=dict(range='rms', bits=4), activation=dict(range='rms', momentum=0.5))
    net.train()
    first, second = inputs(1), inputs(2)
    net(first)
    quantizer = net[0].activation_quantizer
    assert float(quantizer.threshold) == pytest.approx(rms(first), rel=1e-6)
    net(second)
    state = net.state_dict()
    wanted = (rms(first) + rms(second)) / 2
    assert float(state['0.activation_quantizer.threshold']) == pytest.approx(wanted, rel=1e-6)
    weight = net[3].weight.detach()  # the image layer has 8 bits
    step = torch.tensor([rms(row) for row in weight]) / 8
    codes = (weight / step[:, None, None, None]).round().clamp(-8, 7)
    found = net[3].weight_quantizer(weight)
    torch.testing.assert_close(found, codes * step[:, None, None, None], rtol=1e-6, atol=0)


def test_a_statistic_of_another_shape():
    net = mmgdrq.quantize(small_net(), activation=dict(range='counts'))
    net.train()
    net(inputs(1) * 0.1)
    assert float(net[0].activation_quantizer.threshold) == 1
    net(inputs(1) * 1.1)
    assert float(net.state_dict()['0.activation_quantizer.threshold']) == pytest.approx(1 + 0.1 * 1)
    again = mmgdrq.quantize(small_net(), activation=dict(range='counts'))
    again.load_state_dict(net.state_dict())
    assert float(again[0].activation_quantizer.threshold) == pytest.approx(1.1)


def test_a_rule_is_for_what_it_overrides():
    assert WeightSpec(range='rms').range == ActivationSpec(range='rms').range == 'rms'
    assert ActivationSpec(range='counts').range == 'counts'
    with pytest.raises(ConfigError, match=r"weight: range='counts' is unknown.*'rms'"):
        WeightSpec(range='counts')


def test_a_name_belongs_to_one_class():
    register_range_rule('rms')(RootMeanSquare)  # as when its module is reloaded
    with pytest.raises(ConfigError, match=r"range='mean' is .*Mean already"):
        register_range_rule('mean')(RootMeanSquare)
    with pytest.raises(ConfigError, match='subclass of'):
        register_range_rule('other')(dict)
