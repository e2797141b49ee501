"""A quantized layer that gives way to a float one does not do so silently."""

import copy

import pytest
import torch
from mmpretrain.models.backbones import RepVGG
from torch import nn

import mmgdrq
from mmgdrq.errors import QuantizationError
from tests.helpers.nets import inputs, trained


class WithAuxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)
        self.auxiliary = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.body(self.stem(x).relu()).relu()
        return self.last(x) + self.auxiliary(x) if hasattr(self, 'auxiliary') else self.last(x)


def test_a_layer_may_go():
    net = trained(WithAuxiliary()).eval()
    expected = net.body.weight_quantizer(net.body.weight)
    del net.auxiliary
    net(inputs())
    net.train()(inputs()).sum().backward()
    assert torch.equal(net.body.weight_quantizer(net.body.weight), expected)


@pytest.mark.parametrize('training', [False, True])
def test_a_float_layer_in_its_place_is_refused(training):
    net = trained(WithAuxiliary()).train(training)
    copied = copy.deepcopy(net)
    for model in (net, copied):
        model.body = nn.Conv2d(4, 4, 3)
        with pytest.raises(QuantizationError, match='replaced by float layers, such as body'):
            model(inputs())


def test_a_folded_model_in_a_wrapper_has_lost_nothing():
    net = trained(WithAuxiliary()).eval()
    wrapped = nn.Sequential(net, nn.Flatten())
    folded = mmgdrq.fold(wrapped, inputs())
    torch.testing.assert_close(folded(inputs()), wrapped(inputs()))


def test_reparameterization_of_a_quantized_model_is_refused():
    net = mmgdrq.quantize(RepVGG('A0', out_indices=(3,)))
    net.train()
    x = torch.randn(2, 3, 32, 32)
    net(x)
    net.eval()
    net.switch_to_deploy()
    with pytest.raises(QuantizationError, match='switch_to_deploy'):
        net(x)
