"""Folding a layer: integers and BN alone compute what the quantized layer computes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.errors import FoldError
from mmgdrq.quant.specs import GRIDS
from tests.helpers import reference
from tests.helpers.folding import IMAGE, assert_folds, block, randomize_norms, ready

CONVS = {
    'plain': dict(bias=False),
    'bias': dict(bias=True),
    'padding': dict(padding=1),
    'stride and dilation': dict(padding=2, stride=2, dilation=2),
    'grouped': dict(groups=2, padding=1),
    'reflect': dict(padding=1, padding_mode='reflect'),
}


@pytest.mark.parametrize('conv', CONVS)
@pytest.mark.parametrize('group_size', [1, 4, -1])
@pytest.mark.parametrize('signed', [False, True])
def test_conv_and_norm(conv, group_size, signed):
    x = IMAGE if signed else IMAGE.relu()
    net = ready(block(nn.Conv2d(4, 6, 3, **CONVS[conv])), x, dict(bits=3, group_size=group_size))
    assert bool(net[0].activation_quantizer.signed) is signed
    folded = assert_folds(net, x)
    assert folded.gdrq_folded['0'].norm == '1'
    low, high = folded[0].input_codes.limits
    codes = folded[0].input_codes(x)
    assert torch.equal(codes, codes.round())
    assert low <= float(codes.min())
    assert float(codes.max()) <= high


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('rule', ['mean', 'search', 'learned', 'minmax'])
def test_bits_grids_and_rules(bits, grid, rule):
    weight = dict(bits=bits, grid=grid, range=rule, group_size=2)
    net = ready(block(nn.Conv2d(4, 6, 3)), IMAGE, weight, dict(bits=bits, range=rule))
    folded = assert_folds(net, IMAGE)
    weight, stored = folded[0].weight.detach(), folded.gdrq_folded['0'].weight_bits
    assert stored == 8, 'the layer reads the image'
    odd = bool((weight % 2 == 1).all())
    assert not odd, 'odd integers of 8 bits do not fit int8'
    assert float(weight.min()) >= (-127 if grid == 'narrow_range' else -128)


@pytest.mark.parametrize('bits', range(2, 8))
def test_a_midrise_grid_folds_to_odd_integers(bits):
    rules = [dict(pattern='*', weight=dict(bits=bits, grid='midrise', group_size=2), activation={})]
    folded = assert_folds(ready(block(nn.Conv2d(4, 6, 3)), IMAGE, rules=rules), IMAGE)
    weight = folded[0].weight.detach()
    assert bool((weight % 2 == 1).all())
    assert int(weight.abs().max()) <= 2**bits - 1


def test_depthwise_conv():
    net = ready(block(nn.Conv2d(6, 6, 3, groups=6, padding=1)), IMAGE.repeat(1, 2, 1, 1)[:, :6])
    assert_folds(net, IMAGE.repeat(1, 2, 1, 1)[:, :6])


def test_zero_weights_and_zero_gamma():
    conv = nn.Conv2d(4, 6, 3)
    conv.weight.data[2] = 0
    net = ready(block(conv), IMAGE)
    folded = assert_folds(net, IMAGE)
    assert float(net[1].weight[0].detach()) == 0
    y = folded(IMAGE)
    assert bool(y.isfinite().all())
    torch.testing.assert_close(y[:, 0], net[1].bias[0].detach().expand_as(y[:, 0]))


def test_linear_and_norm():
    x = torch.randn(8, 10)
    folded = assert_folds(ready(block(nn.Linear(10, 6), nn.BatchNorm1d), x), x)
    assert folded.gdrq_folded['0'].norm == '1'


def test_sync_norm():
    net = block(nn.Conv2d(4, 6, 3))
    net[1] = nn.SyncBatchNorm(6)
    mmgdrq.quantize(net)
    net.train()
    net[1].eval()
    net(IMAGE)
    randomize_norms(net)
    assert assert_folds(net.eval(), IMAGE).gdrq_folded['0'].norm == '1'


def test_norm_without_affine_parameters():
    net = ready(block(nn.Conv2d(4, 6, 3), affine=False), IMAGE)
    assert net[1].weight is None
    assert_folds(net, IMAGE)
    assert net[1].weight is None


@pytest.mark.parametrize('example', [None, IMAGE])
def test_norm_without_running_statistics(example):
    """It cannot carry a scale, so the layer does."""
    net = ready(nn.Sequential(nn.Conv2d(4, 6, 3)), IMAGE)
    net.append(nn.BatchNorm2d(6, track_running_stats=False))
    folded = mmgdrq.fold(net.eval(), example)
    assert folded.gdrq_folded['0'].norm is None
    assert torch.allclose(folded(IMAGE), net(IMAGE), atol=1e-5)
    with pytest.raises(FoldError, match=r'fold: 1, the BN of 0, has no running statistics'):
        mmgdrq.fold(net, pairs={'0': '1'})


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_no_norm(kind, bias):
    if kind == 'conv':
        layer, x = nn.Conv2d(4, 6, 3, bias=bias, padding=1), IMAGE
    else:
        layer, x = nn.Linear(10, 6, bias=bias), torch.randn(2, 3, 10)
    folded = assert_folds(ready(nn.Sequential(layer), x, dict(bits=2, group_size=4)), x)
    assert folded.gdrq_folded['0'].norm is None
    assert folded[0].scale.shape == (6,)
    assert (folded[0].offset is not None) is bias


@pytest.mark.parametrize('norm', [False, True])
def test_a_float_weight_or_input(norm):
    for weight, activation in ((32, 4), (3, 32)):
        net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity())
        ready(net, IMAGE, dict(bits=weight), dict(bits=activation))
        folded = assert_folds(net, IMAGE)
        assert folded.gdrq_folded['0'].weight_bits == (32 if weight == 32 else 8)
        assert (folded.gdrq_folded['0'].input is None) is (activation == 32)


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('group_size', [1, 4, -1])
@pytest.mark.parametrize('bias', [False, True])
def test_codes_and_outputs_equal_the_folding_formula(bits, group_size, bias):
    torch.manual_seed(2)
    spec = dict(bits=bits, group_size=group_size, k=2.0, grid='twos_complement')
    net = ready(block(nn.Conv2d(4, 6, 3, bias=bias)), IMAGE, rules=[dict(pattern='*', weight=spec, activation={})])
    folded = mmgdrq.fold(net, IMAGE)
    weight = net[0].weight.detach().numpy()
    alphas = np.float32(2) * reference.mean_abs(weight, group_size)
    grid = reference.weight_grid(bits, 'twos_complement')
    parts = list(zip(reference.groups(6, group_size), alphas))
    codes = np.concatenate([reference.codes(weight[part], alpha, grid) for part, alpha in parts])
    steps = np.concatenate([[reference.step(alpha, grid[2])] * (part.stop - part.start) for part, alpha in parts])
    assert np.mean(folded[0].weight.numpy() != codes) < 0.01, 'but for ties that the order of a sum decides'
    quantizer, norm = net[0].activation_quantizer, net[1]
    assert quantizer.spec.bits == 8
    input_grid = reference.activation_grid(8, signed=True)
    threshold = float(quantizer.threshold)
    x = reference.codes(IMAGE.numpy(), threshold, input_grid)
    acc = F.conv2d(torch.from_numpy(x).double(), folded[0].weight.double()).numpy()
    values = {k: getattr(norm, k).detach().numpy() for k in ('weight', 'bias', 'running_mean', 'running_var')}
    expected = reference.folded_block(
        acc,
        steps,
        reference.step(threshold, input_grid[2]),
        net[0].bias.detach().numpy() if bias else np.zeros(6),
        values['weight'],
        values['bias'],
        values['running_mean'],
        values['running_var'],
        norm.eps,
    )
    slack = 1e-5 * np.abs(expected).max()
    for result in (net(IMAGE), folded(IMAGE)):
        np.testing.assert_allclose(result.detach().numpy(), expected, rtol=0, atol=slack)


@pytest.mark.parametrize('bias', [False, True])
def test_one_image_without_a_batch(bias):
    net = ready(nn.Sequential(nn.Conv2d(4, 6, 2, bias=bias)), IMAGE)  # its output is 6 x 6 x 6
    folded = mmgdrq.fold(net)
    torch.testing.assert_close(folded(IMAGE[0]), net(IMAGE[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('filters', [6, 8])
def test_a_norm_over_tokens_does_not_carry_the_scale_of_filters(filters):
    """BN of (N, L, C) normalizes L, whatever the size of C."""
    x = torch.randn(3, 6, 10)
    folded = assert_folds(ready(nn.Sequential(nn.Linear(10, filters), nn.BatchNorm1d(6)), x), x)
    assert folded.gdrq_folded['0'].norm is None
