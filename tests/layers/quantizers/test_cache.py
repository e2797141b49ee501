"""A weight that is kept quantized follows every change of the weight and of its range."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mmgdrq
from mmgdrq.layers import quantized_layers
from mmgdrq.layers.quantizers import weight_quantizer
from mmgdrq.quantized_model.execution import set_execution
from tests.helpers.nets import relu_net


class Levels(nn.Module):
    """A head over several levels, in the way of activation checkpointing or not."""

    def __init__(self, again):
        super().__init__()
        self.stem, self.head, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.again = again

    def forward(self, x):
        levels = [self.stem(x), self.stem(x[..., ::2, ::2])]
        run = (lambda y: checkpoint(self.head, y, use_reentrant=False)) if self.again else self.head
        return sum(self.last(run(level)).sum() for level in levels)


@pytest.mark.parametrize('again', [False, True])
def test_a_shared_weight_is_quantized_once_an_iteration(monkeypatch, again):
    model = mmgdrq.quantize(Levels(again)).train()
    model(torch.randn(1, 3, 8, 8))
    calls = []
    encode = weight_quantizer.encode_weight_by_rule
    monkeypatch.setattr(weight_quantizer, 'encode_weight_by_rule', lambda *args: calls.append(args[0]) or encode(*args))
    for _ in range(2):
        calls.clear()
        model(torch.randn(1, 3, 8, 8)).backward()
        assert len(calls) == 3, 'stem, head and last'
    set_execution(model, cache=False)
    calls.clear()
    model(torch.randn(1, 3, 8, 8)).backward()
    assert len(calls) == (8 if again else 6)


def change_by_step(weight):
    weight.grad = torch.randn_like(weight)
    torch.optim.SGD([weight], 1.0).step()


def change_by_data(weight):
    weight.data.mul_(-3)


def change_by_swap(weight):
    weight.data = torch.randn_like(weight)


def change_in_place(weight):
    with torch.no_grad():
        weight.view(-1)[1] -= 100 * weight.view(-1)[1].sign()  # to the other end of the range


def change_places(weight):
    weight.data.copy_(weight.data.flip(0))


@pytest.mark.parametrize('change', [change_by_step, change_by_data, change_by_swap, change_in_place, change_places])
@pytest.mark.parametrize('rule', ['mean', 'search', 'learned'])
def test_evaluation_follows_the_weight(change, rule):
    layer = mmgdrq.Conv2d(4, 64, 3, weight=dict(bits=4, range=rule)).train()
    x = torch.randn(1, 4, 6, 6)
    layer(x)
    layer.eval()
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(layer(x), first)
    change(layer.weight)
    with torch.no_grad():
        again = layer(x)
    fresh = copy.deepcopy(layer)
    fresh.weight_quantizer.cache.enabled = False
    with torch.no_grad():
        assert torch.equal(again, fresh(x))
    assert not torch.equal(again, first)


@pytest.mark.parametrize('change', [change_by_step, change_by_data, change_by_swap, change_in_place, change_places])
@pytest.mark.parametrize('rule', ['mean', 'search', 'learned'])
@pytest.mark.parametrize('training', [False, True])
def test_a_pass_with_gradients_follows_the_weight(change, rule, training):
    model = mmgdrq.quantize(relu_net(), dict(bits=4, range=rule), stage='quantize').train()
    x = torch.randn(4, 3, 8, 8)
    model(x)
    model.train(training)
    mmgdrq.freeze(model)
    first = model(x).detach()
    assert torch.equal(model(x), first)
    change(model[3].weight)
    fresh = copy.deepcopy(model)
    set_execution(fresh, cache=False)
    again = model(x).detach()
    assert torch.equal(again, fresh(x))
    assert not torch.equal(again, first)


def test_evaluation_with_gradients_keeps_nothing():
    model = mmgdrq.quantize(relu_net()).train()
    x = torch.randn(4, 3, 8, 8)
    model(x)
    model.eval()(x)
    assert not any(layer.weight_quantizer.cache._codes for layer in quantized_layers(model))


@pytest.mark.parametrize('kernels', [False, True])
def test_evaluation_with_gradients_follows_scale_clip(kernels):
    model = mmgdrq.quantize(relu_net(), dict(bits=2)).train()
    set_execution(model, kernels=kernels)
    x = torch.randn(4, 3, 8, 8)
    model(x)
    model.eval()
    first = model(x).detach()
    mmgdrq.ScaleClip(model)()
    fresh = copy.deepcopy(model)
    set_execution(fresh, cache=False, kernels=kernels)
    again = model(x).detach()
    assert torch.equal(again, fresh(x))
    assert not torch.equal(again, first)


def test_evaluation_follows_a_learned_range():
    layer = mmgdrq.Linear(8, 4, weight=dict(bits=4, range='learned')).train()
    x = torch.randn(2, 8)
    layer(x)
    layer.eval()
    with torch.no_grad():
        first = layer(x)
        layer.weight_quantizer.alpha.data.mul_(2)
        assert not torch.equal(layer(x), first)


def test_a_state_that_is_loaded_is_evaluated():
    one, two = (mmgdrq.quantize(relu_net()).train() for _ in range(2))
    x = torch.randn(2, 3, 8, 8)
    one(x)
    with torch.no_grad():
        for parameter in two.parameters():
            parameter.add_(torch.randn_like(parameter))
        two(x)
        expected = two.eval()(x)
        one.eval()(x)
        one.load_state_dict(two.state_dict())
        assert torch.equal(one(x), expected)
