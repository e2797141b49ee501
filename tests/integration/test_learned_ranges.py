"""Ranges as parameters: they move as the steps of LSQ, and rest while they are frozen."""

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.layers import ActivationQuantizer
from mmgdrq.quant import ActivationSpec
from tests.helpers import reference
from tests.helpers.nets import PartlyUsed, exact


@pytest.mark.parametrize('group_size', [1, 2, -1])
def test_gradient_scale_of_a_learned_weight_range_counts_the_group(group_size):
    torch.manual_seed(4)
    layer = mmgdrq.Linear(
        8,
        4,
        bias=False,
        weight=dict(bits=2, range='learned', group_size=group_size, grid='twos_complement'),
        activation=dict(bits=32),
    )
    x = torch.eye(8)
    layer(x).sum().backward()
    alpha = layer.weight_quantizer.alpha
    weight, step = layer.weight.detach(), alpha.detach() / 2
    for number, part in enumerate(reference.groups(4, group_size)):
        scaled = weight[part] / step[number]
        inside = (scaled >= -2) & (scaled <= 1)
        slope = torch.where(inside, scaled.round() - scaled, scaled.clamp(-2, 1)).sum()
        gradient = float(slope) * (weight[part].numel() * 1) ** -0.5  # of the step, by LSQ
        assert float(alpha.grad[number]) == pytest.approx(2 * gradient, rel=1e-4)  # alpha = 2 * step


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_sgd_moves_a_learned_range_as_lsq_moves_its_step(bits):
    levels = 2**bits - 1
    quantizer = ActivationQuantizer(ActivationSpec(bits=bits, range='learned', signed=False)).train()
    quantizer.set_range(torch.tensor(1.5), signed=False)
    step = nn.Parameter(torch.tensor(1.5 / levels))
    optimizers = [torch.optim.SGD(parameters, 1e-3, momentum=0.9) for parameters in (quantizer.parameters(), [step])]
    moved = []
    for number in range(5):
        x = torch.randn(512, generator=torch.Generator().manual_seed(number)).abs()
        factor = (x.numel() * levels) ** -0.5
        scaled = step * factor + (step - step * factor).detach()
        codes = (x / scaled).clamp(0, levels)
        expected = (codes + (codes.round() - codes).detach()) * scaled
        for result in (quantizer(x), expected):
            (result - x).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        moved.append(quantizer.threshold.item())
        assert moved[-1] == pytest.approx(levels * step.item(), rel=1e-4)
    assert max(moved) - min(moved) > 1e-3


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_frozen_learned_ranges_keep_their_value(momentum):
    config = dict(weight=dict(range='learned'), activation=dict(range='learned'))
    net = mmgdrq.quantize(PartlyUsed(), **config).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=momentum, weight_decay=0.1)

    def ranges():
        return {k: v.clone() for k, v in net.state_dict().items() if k.endswith(('alpha', 'threshold'))}

    def train():
        net(exact(0, 5, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    train()
    before = ranges()
    train()
    frozen = ranges()
    assert any(not torch.equal(before[key], frozen[key]) for key in before)
    mmgdrq.freeze(net)
    for _ in range(3):
        train()
        outputs = net.eval()(exact(0, 5, 6))
        net.train()
        assert all(torch.equal(value, frozen[key]) for key, value in ranges().items())
    assert not torch.equal(outputs, torch.zeros_like(outputs))
    mmgdrq.freeze(net, False)
    train()
    assert any(not torch.equal(value, frozen[key]) for key, value in ranges().items())
