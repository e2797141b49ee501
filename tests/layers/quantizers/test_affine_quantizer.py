"""Layers whose input has a zero point, for all channels or each."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.errors import CheckpointError, ConfigError, QuantizationError
from mmgdrq.layers import AffineQuantizer

AFFINE = dict(bits=8, range='minmax', grid='affine')


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(),
        nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.SiLU(),
        nn.Conv2d(12, 4, 1),
    )  # fmt: skip
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, 1, 3, 10, 0.5, 2]))
    return model.eval()


def images(count=4):
    return torch.rand(count, 3, 10, 10, generator=torch.Generator().manual_seed(3)) - 0.3


def calibrated(**activation):
    model = network()
    mmgdrq.calibrate(model, [images(), images(2)], progress=False, activation={**AFFINE, **activation})
    return model


def test_depthwise_convolutions_have_a_grid_per_channel_and_others_one():
    shapes = [layer.activation_quantizer.scale.shape for layer in (calibrated()[i] for i in (0, 3, 5))]
    assert shapes == [(), (6,), ()]
    assert calibrated(per_channel=False)[3].activation_quantizer.scale.shape == ()


def test_ranges_are_those_of_numpy():
    model, float_model = calibrated(), network()
    with torch.no_grad():
        x = float_model[:3](images()).numpy()
    low, high = np.minimum(x.min((0, 2, 3)), 0), x.max((0, 2, 3))
    quantizer = model[3].activation_quantizer
    assert quantizer.scale.numpy() == pytest.approx((high - low) / 255, rel=1e-5)
    assert quantizer.zero_point.numpy() == pytest.approx(np.rint(-low / ((high - low) / 255)))
    assert model[0].activation_quantizer.zero_point > 0


def test_percentiles_leave_outliers_out():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((4, 3, 100, 100)).astype(np.float32))
    x[0, 0, 0, 0], x[0, 1, 0, 0] = 500, -500
    model = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 2, 1))
    report = mmgdrq.calibrate(model, [x], progress=False, activation=dict(AFFINE, range='percentile'))
    low, high = model[0].activation_quantizer.bounds()
    expected = np.quantile(x.movedim(1, 0).flatten(1).numpy(), [0.0001, 0.9999], axis=1)
    assert low.numpy() == pytest.approx(expected[0], rel=0.15)
    assert high.numpy() == pytest.approx(expected[1], rel=0.15)
    assert report.layers[0].range == pytest.approx((low.min().item(), high.max().item()))


def test_the_output_is_that_of_the_rounded_input():
    model = calibrated()
    seen = []
    model[3].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    hook = model[3].register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        model(images())
    hook.remove()
    quantizer, layer = model[3].activation_quantizer, model[3]
    scale, zero = (t.numpy()[:, None, None] for t in (quantizer.scale, quantizer.zero_point))
    codes = np.clip(np.rint(seen[0].numpy() / scale) + zero, 0, 255)
    weight = layer.weight_quantizer(layer.weight).detach()
    expected = F.conv2d(torch.from_numpy((codes - zero) * scale), weight, layer.bias, padding=1, groups=6)
    torch.testing.assert_close(seen[1], expected.detach(), rtol=1e-5, atol=1e-5)


def test_it_is_nearer_to_float_than_one_symmetric_grid():
    x, expected = images(), network()(images())
    symmetric = network()
    mmgdrq.calibrate(symmetric, [x], progress=False, activation=dict(bits=8, grid='symmetric', range='minmax'))
    errors = [(model(x) - expected).norm().item() for model in (calibrated(), symmetric)]
    assert errors[0] < 0.7 * errors[1]


def test_weights_train_while_the_grid_stays():
    model = calibrated().train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()
    after = model.state_dict()
    assert torch.equal(after['3.activation_quantizer.scale'], before['3.activation_quantizer.scale'])
    assert not torch.equal(after['3.weight'], before['3.weight'])
    assert not torch.equal(after['0.weight'], before['0.weight']), 'gradients pass through the rounding'


def test_copies_pickles_and_checkpoints_give_the_same():
    model, x = calibrated(), images()
    loaded = mmgdrq.quantize(network(), weight=dict(bits=8, range='minmax'), activation=AFFINE)
    loaded.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded.eval()):
        assert torch.equal(other(x), model(x))


def test_without_a_calibration_it_is_an_error_that_says_so():
    model = mmgdrq.quantize(network(), activation=AFFINE)
    for mode in (True, False):
        with pytest.raises(QuantizationError, match=r'tools/calibrate\.py'):
            model.train(mode)(images())


def test_a_checkpoint_of_another_grid_is_refused():
    symmetric = mmgdrq.quantize(network(), activation=dict(bits=8))
    with pytest.raises(CheckpointError):
        symmetric.load_state_dict(calibrated().state_dict())
    other = mmgdrq.quantize(network(), weight=dict(bits=8, range='minmax'), activation=dict(AFFINE, per_channel=False))
    with pytest.raises(CheckpointError, match='6 channels'):
        other.load_state_dict(calibrated().state_dict())


def test_settings_that_do_not_fit_are_refused():
    for activation, message in (
        (dict(grid='affine', range='lehmer'), 'gives no lowest value'),
        (dict(grid='afine'), 'is unknown'),
        (dict(grid='affine', range='percentile', percentile=1), 'is not in'),
        (dict(grid='affine', range='minmax', per_channel=1), 'is not True or False'),
    ):
        with pytest.raises(ConfigError, match=message):
            mmgdrq.quantize(network(), activation=activation)


def test_a_map_without_elements_passes():
    quantizer = AffineQuantizer(mmgdrq.quant.ActivationSpec(**AFFINE), 4)
    assert quantizer(torch.zeros(0, 4, 2, 2)).shape == (0, 4, 2, 2)
