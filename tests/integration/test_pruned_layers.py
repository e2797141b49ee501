"""What docs/semantics.md says about layers that were pruned."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import mmgdrq

PRUNED = '1'


def pruned(masked: bool, **weight):
    """A quantized network whose layer in the middle has 90 % zeros: its weight, and what it computes with."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 64, 3), nn.Conv2d(64, 4, 1))
    layer = net.get_submodule(PRUNED)
    prune.l1_unstructured(layer, 'weight', 0.9)
    if not masked:
        prune.remove(layer, 'weight')
    mmgdrq.quantize(net, weight).train()(torch.rand(2, 3, 9, 9))
    weight = layer.weight.detach().clone()
    return weight, layer.weight_quantizer.eval()(weight).detach()


def share_off(weight, found) -> float:
    """Share of the weights that are left which lose more than 10 %."""
    kept = weight != 0
    return float(((found - weight).abs() > 0.1 * weight.abs())[kept].float().mean())


@pytest.mark.parametrize('masked', [True, False])
def test_the_default_range_clips_what_pruning_has_left(masked):
    """A limit that is documented: the mean magnitude counts the zeros."""
    assert share_off(*pruned(masked, bits=4)) > 0.9


@pytest.mark.parametrize('masked', [True, False])
def test_the_documented_choice_keeps_it(masked):
    assert share_off(*pruned(masked, bits=4, range='search')) < 0.05
    weight, found = pruned(masked, bits=2, range='search', grid='narrow_range')
    assert torch.equal(found != 0, weight != 0), 'three levels: zeros stay zeros, and no others become one'
