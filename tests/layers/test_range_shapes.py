"""Learned ranges of older checkpoints, and ranges that do not fit the layer that loads them."""

import copy

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

import mmgdrq
from mmgdrq.layers.walk import activation_quantizers
from tests.helpers.nets import inputs, small_net

LEARNED = dict(weight=dict(bits=3, range='learned'), activation=dict(bits=4, range='learned'))


def step(net, optimizer, seed):
    optimizer.zero_grad()
    net(inputs(seed)).square().sum().backward()
    optimizer.step()


def trained(make_optimizer, steps=3):
    net = mmgdrq.quantize(small_net(), **LEARNED).train()
    optimizer = make_optimizer(net.parameters())
    mmgdrq.ScaleClip(net).attach(optimizer)
    for seed in range(steps):
        step(net, optimizer, seed)
    return net, optimizer


def older(state):
    """As versions before saved it: input ranges without a dimension."""
    if isinstance(state, dict):
        return {key: value if key == 'weight' else older(value) for key, value in state.items()}
    return state.reshape(()) if isinstance(state, torch.Tensor) and state.shape == (1,) else state


def older_weights(state):
    return {key: value.reshape(()) if key.endswith('.threshold') else value for key, value in state.items()}


def test_a_learned_input_range_has_a_dimension():
    net, _ = trained(lambda p: torch.optim.SGD(p, 0.01))
    assert all(q.learned().shape == (1,) for q in activation_quantizers(net))
    assert all(parameter.dim() for parameter in net.parameters())


@pytest.mark.parametrize(
    'make', [lambda p: torch.optim.SGD(p, 0.01, momentum=0.9), lambda p: torch.optim.AdamW(p, 1e-3)]
)
@pytest.mark.parametrize('load_first', [True, False])
def test_a_training_of_an_older_version_goes_on(make, load_first):
    net, optimizer = trained(make)
    weights, state = copy.deepcopy((older_weights(net.state_dict()), older(optimizer.state_dict())))
    again = mmgdrq.quantize(small_net(), **LEARNED).train()
    again.load_state_dict(weights)
    other = make(again.parameters())
    if load_first:
        other.load_state_dict(state)
    mmgdrq.ScaleClip(again).attach(other)
    if not load_first:
        other.load_state_dict(state)
    for seed in (7, 8):
        step(net, optimizer, seed)
        step(again, other, seed)
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def classes(count, **quant):
    torch.manual_seed(count)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, count, 1))
    return mmgdrq.quantize(net, **quant).train()


@pytest.mark.parametrize('rule', ['learned', 'search'])
@pytest.mark.parametrize('group_size', [1, -1])
def test_a_range_of_other_classes_starts_anew_and_the_log_says_so(rule, group_size, capsys):
    quant = dict(weight=dict(bits=3, range=rule, group_size=group_size))
    net = classes(20, **quant)
    net[4].weight.data.mul_(1e-3)
    net(inputs(0))
    net.eval()
    other = classes(5, **quant)
    load_state_dict(other, net.state_dict(), strict=False, logger=None)
    assert 'its range starts anew' in capsys.readouterr().out
    other.eval()
    expected = classes(5, **quant)[4].weight_quantizer.eval()(other[4].weight.detach())
    torch.testing.assert_close(other[4].weight_quantizer(other[4].weight.detach()), expected, rtol=1e-6, atol=0)
    assert torch.equal(other[2].weight_quantizer.alpha, net[2].weight_quantizer.alpha), 'that of a layer that fits'


def test_plain_torch_refuses_it_as_any_other_tensor():
    quant = dict(weight=dict(bits=3, range='learned'))
    with pytest.raises(RuntimeError, match='its range starts anew'):
        classes(5, **quant).load_state_dict(classes(20, **quant).state_dict())
