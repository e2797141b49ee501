"""Blocks that are computed again in the backward pass count once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import mmgdrq
from tests.helpers import reference
from tests.helpers.nets import Checkpointed, SharedHead, assert_same, inputs, ranges


@pytest.mark.parametrize('again', [False, True])
def test_activation_checkpointing(again):
    results = []
    for mode in (None, again):
        torch.manual_seed(3)
        net = mmgdrq.quantize(Checkpointed(mode), activation=dict(bits=4, momentum=0.3)).train()
        grads = []
        for seed in range(3):
            net.zero_grad()
            net(inputs(seed) * (seed + 1)).square().sum().backward()
            grads.append({name: p.grad.clone() for name, p in net.named_parameters()})
        results.append((grads, ranges(net)))
    # the first iteration computes with the range of its first call, its recomputation with that of all calls
    for one, two in list(zip(results[0][0], results[1][0]))[1:]:
        for name, grad in one.items():
            torch.testing.assert_close(two[name], grad, rtol=1e-5, atol=1e-6 * float(grad.abs().max()))
    assert_same(results[0][1], results[1][1])
    assert float(results[0][0][0]['block.0.weight'].abs().sum()) > 0


@pytest.mark.parametrize('again', [False, True])
def test_a_block_that_is_computed_again_counts_once(again):
    net = mmgdrq.quantize(Checkpointed(again), activation=dict(bits=8, range='mean', momentum=0.5, k=3.0)).train()
    seen, iterations = [], []
    quantizer = net.block[0].activation_quantizer
    quantizer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().numpy()))
    for seed in range(3):
        out = net(inputs(seed) * (seed + 1))
        iterations.append(list(seen))
        out.sum().backward()
        assert len(seen) == 3, 'two calls and one recomputation'
        seen.clear()
    found = float(net.state_dict()['block.0.activation_quantizer.threshold'])
    assert found == pytest.approx(reference.running_threshold(iterations, 3.0, 0.5), rel=1e-5)


@pytest.mark.parametrize('again', [False, True])
def test_checkpointing_a_block_of_one_call_changes_no_gradient_from_the_first_iteration_on(again):
    class Single(Checkpointed):
        def forward(self, x):
            x = F.relu(self.stem(x))
            x = self.block(x) if self.again is None else checkpoint(self.block, x, use_reentrant=self.again)
            return self.last(F.relu(x))

    grads = []
    for mode in (None, again):
        torch.manual_seed(3)
        net = mmgdrq.quantize(Single(mode)).train()
        net(inputs()).square().sum().backward()
        grads.append({name: p.grad for name, p in net.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-5, atol=1e-6 * float(grad.abs().max()))


@pytest.mark.parametrize('rule', ['mean', 'search', 'learned', 'minmax'])
def test_several_forward_passes_before_one_backward_pass(rule):
    torch.manual_seed(3)
    net = mmgdrq.quantize(SharedHead(), dict(bits=3, range=rule), dict(bits=4, range=rule)).train()
    loss = sum(net([torch.randn(1, 3, 5, 5)])[0].square().sum() for _ in range(3))
    net.state_dict()  # as a checkpoint hook might do
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    assert float(net.tower.weight.grad.abs().sum()) > 0


RULES = ['lehmer', 'mean', 'search', 'minmax', 'learned']
PLACES = ['root, reentrant', 'root', 'block, reentrant', 'block']


class Chain(nn.Module):
    """Each of its layers is called once; ``block`` may be computed again."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.reentrant = reentrant
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return dict(loss=self.last(F.relu(x)).square().sum())


def several_passes(place, rule, passes, iterations=3):
    """Gradients and ranges of a training with several forward passes before each backward pass."""
    torch.manual_seed(3)
    reentrant = place is not None and place.endswith('reentrant')
    block = place is not None and place.startswith('block')
    weight = 'mean' if rule == 'lehmer' else rule
    net = mmgdrq.quantize(Chain(reentrant if block else None), dict(bits=3, range=weight), dict(bits=4, range=rule))
    if rule == 'learned':  # its first range is that of its first call, and then of all calls
        net.train()(inputs(9))
    found = []
    for number in range(iterations):
        net.train().zero_grad()
        losses = []
        for seed in range(passes):
            x = (inputs(10 * number + seed) * (seed + 1)).requires_grad_()
            root = place is not None and place.startswith('root')
            loss = checkpoint(lambda x: net(x)['loss'], x, use_reentrant=reentrant) if root else net(x)['loss']
            losses.append(loss)
        sum(losses).backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters()})
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(1e-3 * parameter.grad.sign())
    return found, ranges(net)


@pytest.mark.parametrize('passes', [1, 3])
@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('place', PLACES)
def test_gradients_are_exact_and_statistics_count_once(place, rule, passes):
    expected, expected_ranges = several_passes(None, rule, passes)
    found, found_ranges = several_passes(place, rule, passes)
    for one, two in zip(expected, found):
        for name, grad in one.items():
            torch.testing.assert_close(two[name], grad, rtol=1e-5, atol=1e-5 * float(grad.abs().max()))
    for name, value in expected_ranges.items():
        torch.testing.assert_close(found_ranges[name], value, rtol=1e-5, atol=1e-6)
