"""Weights that are rounded together against weights that are each rounded to the nearest code."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.errors import ConfigError
from mmgdrq.post_training.reconstruction import SecondMoments, round_by_moments

W4 = dict(weight=dict(bits=4, range='search'), activation=dict(bits=8, grid='affine'))
RULES = [dict(pattern='*', weight=dict(bits=4))]  # also the first and the last layer


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, dilation=2, groups=2), nn.ReLU(), nn.Conv2d(16, 8, 1),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(1), nn.Linear(32, 4),
    ).eval()  # fmt: skip


def batches():
    rng = torch.Generator().manual_seed(1)
    base = torch.rand(12, 1, 10, 10, generator=rng)
    return [base.expand(-1, 3, -1, -1) + 0.1 * torch.rand(12, 3, 10, 10, generator=rng) for _ in range(2)]


def calibrated(**options):
    model = network()
    report = mmgdrq.calibrate(model, batches(), progress=False, rules=RULES, **W4, **options)
    return model, report


def test_correlated_inputs_are_rounded_better_together():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 1)) + 0.3 * rng.standard_normal((500, 24))
    weight, step = torch.from_numpy(rng.standard_normal((1, 32, 24))).float(), torch.full((1, 32, 1), 0.3)
    moments = torch.from_numpy(x.T @ x)[None]
    found = round_by_moments(weight, moments, step, (-8, 7), 0.0)[0].numpy()
    nearest = np.clip(np.rint(weight[0].numpy() / 0.3), -8, 7) * 0.3
    codes = found / 0.3
    assert np.allclose(codes, np.rint(codes), atol=1e-5)
    assert codes.min() >= -8.001
    assert codes.max() <= 7.001
    errors = [((q - weight[0].numpy()) @ x.T).std() for q in (found, nearest)]
    assert errors[0] < 0.6 * errors[1]


def test_inputs_without_correlation_are_rounded_to_the_nearest():
    weight, step = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(0)), torch.full((1, 8, 1), 0.3)
    found = round_by_moments(weight, torch.eye(6)[None] * 5, step, (-8, 7), 0.0)
    assert torch.equal(found, (weight / 0.3).round().clamp(-8, 7) * 0.3)


@pytest.mark.parametrize('number', [0, 2, 4, 6])
def test_moments_are_those_of_the_patches(number):
    layer = network()[number]
    x = torch.rand(3, layer.in_channels, 8, 8)
    moments = SecondMoments(layer)
    moments.add(x)
    sums = moments.sums.double()
    weight = layer.weight.detach().double().reshape(layer.groups, -1, sums.shape[-1])
    energy = torch.einsum('gof,gfh,goh->go', weight, sums, weight).flatten()
    output = F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups).detach()
    assert energy.numpy() == pytest.approx((output.double() ** 2).sum((0, 2, 3)).numpy(), rel=1e-4)


def test_the_weights_that_stay_are_on_the_grid():
    model, _ = calibrated(reconstruct=True)
    for number in (0, 2, 4, 6, 9):
        layer = model[number]
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight, rtol=1e-6, atol=1e-7)


def test_every_layer_and_the_whole_get_nearer_to_float():
    (nearest, plain), (together, report) = calibrated(), calibrated(reconstruct=True)
    x = batches()[1]
    with torch.no_grad():
        expected = network()(x)
        errors = [(model(x) - expected).norm().item() for model in (nearest, together)]
    assert errors[1] < 0.8 * errors[0]
    assert report.layers[0].range == plain.layers[0].range


def test_it_saves_loads_and_folds():
    model, _ = calibrated(reconstruct=True)
    x = batches()[0]
    activation = dict(W4['activation'], range='percentile')
    other = mmgdrq.quantize(network(), rules=RULES, weight=W4['weight'], activation=activation)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(x), model(x))
        torch.testing.assert_close(mmgdrq.fold(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_where_nothing_can_be_reconstructed_it_is_an_error():
    with pytest.raises(ConfigError, match='no layer can be reconstructed'):
        mmgdrq.calibrate(network(), batches(), progress=False, reconstruct=True)


def with_norms():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Flatten(1), nn.Linear(8 * 36, 4),
    )  # fmt: skip
    model.train()(batches()[0])
    return model.eval()


def means(model, places):
    seen = {}
    hooks = [
        model[i].register_forward_hook(lambda m, args, y, i=i: seen.update({i: y.transpose(0, 1).flatten(1).mean(1)}))
        for i in places
    ]
    with torch.no_grad():
        model(batches()[0])
    for hook in hooks:
        hook.remove()
    return seen


def test_bias_correction_restores_the_means_of_the_channels():
    model, places = with_norms(), (1, 3, 6, 8)
    expected = means(model, places)
    plain = copy.deepcopy(model)
    options = dict(weight=dict(bits=4), activation=dict(bits=4, grid='affine'), rules=RULES)
    mmgdrq.calibrate(plain, batches(), progress=False, **options)
    mmgdrq.calibrate(model, batches(), progress=False, bias_correction=True, **options)
    found, before = means(model, places), means(plain, places)
    for place in places:
        torch.testing.assert_close(found[place], expected[place], rtol=1e-4, atol=1e-5)
        assert (before[place] - expected[place]).abs().max() > 1e-3, 'there is something to correct'
    assert all(torch.equal(a, b) for a, b in zip(model[0].parameters(), plain[0].parameters()))


def test_layers_that_are_called_several_times_keep_their_bias():
    class Twice(nn.Sequential):
        def forward(self, x):
            return self[1](x) + self[1](self[0](x))

    torch.manual_seed(0)
    model = Twice(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    before = copy.deepcopy(model.state_dict())
    mmgdrq.calibrate(model, batches(), progress=False, bias_correction=True, weight=dict(bits=2))
    after = model.state_dict()
    assert torch.equal(after['1.bias'], before['1.bias'])
    assert not torch.equal(after['0.bias'], before['0.bias'])
