"""Pruned layers, with and without the mask of ``torch.nn.utils.prune``: what is kept keeps its range."""

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvWS2d
from torch import nn
from torch.nn.utils import prune, spectral_norm

import mmgdrq
from mmgdrq.deploy import load_folded, save_folded
from tests.helpers import reference

X = torch.rand(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))
PRUNED = (3, 5)
FOUR = dict(bits=4, k=3.0)


def pruned(masked=True, group_size=1):
    """A quantized net whose two inner layers have lost 90 % of a Gaussian weight."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()),
        *(nn.ConvTranspose2d(16, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    for index in PRUNED:
        nn.init.normal_(net[index].weight, std=0.1)
        prune.random_unstructured(net[index], 'weight', 0.9)
        if not masked:
            prune.remove(net[index], 'weight')
    return mmgdrq.quantize(net, dict(group_size=group_size, **FOUR), dict(bits=8))


def lost(layer):
    """||W - Q(W)|| / ||W||, of the weights that are kept and those that are not."""
    weight = layer.filters().detach()
    change, kept = (layer.weight_quantizer(weight) - weight).detach(), weight != 0
    assert 0.05 < float(kept.float().mean()) < 0.15
    return float(change[kept].norm() / weight[kept].norm()), float(change[~kept].abs().max())


@pytest.mark.parametrize('kernels', [False, True])
@pytest.mark.parametrize('group_size', [1, 4, -1])
@pytest.mark.parametrize('masked', [False, True])
def test_four_bits_change_what_is_kept_little(masked, group_size, kernels):
    net = pruned(masked, group_size)
    mmgdrq.set_execution(net, kernels=kernels)
    if masked:
        train(net)
    for index in PRUNED:
        kept, masked_out = lost(net[index])
        assert kept < 0.15
        assert masked_out == 0


@pytest.mark.parametrize('masked', [True, False])
def test_a_search_suits_what_pruning_by_magnitude_leaves(masked):
    for weight in (dict(bits=4, range='search'), dict(bits=2, range='search', grid='narrow_range')):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 64, 3), nn.Conv2d(64, 4, 1))
        layer = prune.l1_unstructured(net[1], 'weight', 0.9)
        if not masked:
            prune.remove(layer, 'weight')
        mmgdrq.quantize(net, weight).train()(X)
        values = layer.weight.detach().clone()
        found, kept = layer.weight_quantizer.eval()(values).detach(), values != 0
        if weight['bits'] == 4:
            assert float(((found - values).abs() > 0.1 * values.abs())[kept].float().mean()) < 0.05
        else:
            assert torch.equal(found != 0, kept), 'three levels: zeros stay zeros, and no others become one'


def train(net, steps=3):
    optimizer = torch.optim.SGD(net.train().parameters(), 0.01)
    mmgdrq.ScaleClip(net).attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize('group_size', [1, 3, -1])
def test_the_bound_of_scale_clip_is_that_of_the_masked_weight(group_size):
    net = pruned(True, group_size)
    for layer, axes in ((net[3], (0, 1, 2, 3)), (net[5], (1, 0, 2, 3))):
        with torch.no_grad():
            layer.weight_orig.mul_(5)  # as an optimizer step: `weight` is of before
            layer.weight_orig.view(-1)[::5] *= 10
        stored, mask = (t.detach().numpy().transpose(axes).copy() for t in (layer.weight_orig, layer.weight_mask))
        layer.scale_clip_()
        expected = stored.copy()
        for part in reference.groups(len(stored), group_size):
            bound = 3.0 * np.abs(stored[part][mask[part] == 1].astype(np.float64)).mean()
            expected[part] = np.clip(stored[part], -bound, bound)
        assert (expected != stored).mean() > 0.02
        np.testing.assert_allclose(layer.weight_orig.detach().numpy().transpose(axes), expected, rtol=1e-5)


def test_scale_clip_of_a_masked_standardized_weight():
    layer = prune.random_unstructured(ConvWS2d(4, 6, 3), 'weight', 0.5)
    net = mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Conv2d(6, 2, 1)), dict(bits=4, k=1.5))
    stored, mask = net[1].weight_orig.detach().double().numpy().copy(), net[1].weight_mask.numpy()
    net[1].scale_clip_()
    mean = (stored * mask).mean((1, 2, 3), keepdims=True)
    bound = 1.5 * np.abs(stored * mask - mean).mean((1, 2, 3), keepdims=True)
    expected = mean + np.clip(stored - mean, -bound, bound)
    assert np.abs(expected - stored).max() > 0.01
    np.testing.assert_allclose(net[1].weight_orig.detach().numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('change', ['step', 'load'])
@pytest.mark.parametrize('how', ['mask', 'spectral norm'])
def test_fold_takes_the_weight_of_now(how, change):
    """``weight`` is an attribute that the last forward pass has left."""
    net = pruned()
    if how == 'spectral norm':
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), spectral_norm(nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 4, 3))
        net = mmgdrq.quantize(net, FOUR, dict(bits=8))
    train(net, 1)
    if change == 'load':
        with torch.no_grad():
            net.eval()(X)
        state = net.state_dict()
        net.load_state_dict({key: value * 3 if key.endswith('weight_orig') else value for key, value in state.items()})
    else:
        train(net, 1)
    folded = mmgdrq.fold(net.eval())
    with torch.no_grad():
        expected = net(X)
        assert float((folded(X) - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize('masked', [False, True])
def test_masked_layers_fold_to_integers_and_load(masked, tmp_path):
    def build(masks):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
        for index in masks:
            prune.random_unstructured(net[index], 'weight', 0.9)
            prune.random_unstructured(net[index], 'bias', 0.5)
        return mmgdrq.quantize(net, FOUR, dict(bits=8))

    net = build([2, 4])
    prune.random_unstructured(net[0], 'bias', 0.5)
    train(net)
    folded = mmgdrq.fold(net.eval())
    assert {entry.kind for entry in folded.gdrq_folded.values()} == {'conv'}
    assert folded.gdrq_folded['2'].norm == '3'
    assert not any('mask' in key or 'orig' in key for key in folded.state_dict())
    save_folded(folded, tmp_path / 'out')
    loaded = load_folded(build([2, 4] if masked else []), tmp_path / 'out')
    with torch.no_grad():
        expected = net(X)
        assert float((folded(X) - expected).abs().max() / expected.abs().max()) < 1e-5
        assert torch.equal(loaded(X), folded(X))
    assert '2.weight_mask' in net.state_dict(), 'the quantized model keeps its masks'


def test_a_mask_can_be_made_permanent_after_training():
    net = pruned()
    train(net)
    with torch.no_grad():
        expected = net.eval()(X)
    for index in PRUNED:
        prune.remove(net[index], 'weight')
    assert torch.equal(net(X), expected)


def test_compiled_and_traced_models_compute_the_same():
    net = pruned()
    train(net)
    for index in PRUNED:
        prune.remove(net[index], 'weight')
    with torch.no_grad():
        expected = net.eval()(X)
        traced = torch.jit.trace(net, X)
        torch.testing.assert_close(traced(X), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(torch.compile(net, backend='aot_eager')(X), expected, rtol=1e-4, atol=1e-6)


def test_attention_with_a_masked_weight_is_left_out():
    net = nn.ModuleDict(dict(a=nn.Linear(8, 8), attention=nn.MultiheadAttention(8, 2), b=nn.Linear(8, 8)))
    prune.l1_unstructured(net['attention'], 'in_proj_weight', 0.5)
    rows = {row.name: row for row in mmgdrq.plan(net)}
    assert 'computed from other parameters' in rows['attention'].reason
    assert not rows['attention.out_proj'].quantized
    mmgdrq.quantize(net)
    x = torch.rand(3, 1, 8)
    assert net['attention'](x, x, x)[0].shape == x.shape
