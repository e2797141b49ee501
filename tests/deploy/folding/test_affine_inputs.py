"""Folded layers with affine inputs compute from integers what the quantized ones do."""

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.deploy import load_folded, save_folded
from mmgdrq.deploy.deployment import export
from mmgdrq.deploy.folding.affine_inputs import AffineCodes
from mmgdrq.errors import ConfigError, ExportError
from tests.layers.quantizers.test_affine_quantizer import AFFINE, images, network


class Separable(nn.Module):
    """A stem, two depthwise convolutions (one with two filters per channel), one with a bias and a zero-padded one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(12))
        self.second = nn.Conv2d(12, 12, 3, padding=2, groups=12)
        self.pointwise = nn.Sequential(nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = nn.functional.leaky_relu(self.second(nn.functional.silu(self.depthwise(self.stem(x)))))
        return self.head(self.pointwise(x).mean((2, 3)))


def calibrated(bits=8):
    torch.manual_seed(0)
    model = Separable()
    model.train()(3 * images(16))
    activation = dict(AFFINE, bits=bits, range='percentile')
    mmgdrq.calibrate(model, [3 * images(16)], progress=False, activation=activation, weight=dict(bits=bits))
    return model


@pytest.mark.parametrize('bits', [4, 8])
def test_folded_equals_quantized(bits):
    model, x = calibrated(bits), 3 * images()
    folded = mmgdrq.fold(model, example=x)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)
    entries = folded.gdrq_folded
    assert entries['depthwise.0'].input_grid == (6, 2)
    assert entries['second'].input_grid == (12, 2)
    assert bits == 4 or entries['pointwise.0'].input_grid == (0, 2)
    assert entries['head'].input_grid is None, 'what a ReLU leaves is unsigned'


def test_all_inputs_and_weights_are_integers():
    model, x = calibrated(), 3 * images()
    folded = mmgdrq.fold(model, example=x)
    seen = []
    for module in folded.modules():
        if hasattr(module, 'input_codes'):
            module.input_codes.register_forward_hook(lambda *args: seen.append(args[2]))
            assert torch.equal(module.weight, module.weight.round())
    with torch.no_grad():
        folded(x)
    assert len(seen) == 5
    for codes in seen:
        assert torch.equal(codes, codes.round())
        assert codes.abs().max() <= 255


def test_zero_padding_is_zero():
    codes = AffineCodes(8, 3, 2)
    codes.zero_point.copy_(torch.tensor([0.0, 17.0, 255.0]))
    assert not codes(torch.zeros(1, 3, 2, 2)).any()


def test_it_is_written_and_read(tmp_path):
    x = 3 * images()
    folded = mmgdrq.fold(calibrated(), example=x)
    save_folded(folded, tmp_path / 'out', '')
    weight, activation = dict(bits=8, range='search'), dict(AFFINE, range='percentile')
    again = load_folded(mmgdrq.quantize(Separable(), weight, activation).eval(), tmp_path / 'out')
    with torch.no_grad():
        assert torch.equal(again(x), folded(x))


def test_graphs_are_refused_with_one_error(tmp_path):
    folded = mmgdrq.fold(calibrated(), example=images())
    for profile in ('onnxruntime', 'openvino'):
        with pytest.raises(ExportError, match='has an affine input range'):
            export(folded, lambda model: model(images()), tmp_path, profile)


def test_simulation_is_refused():
    model = mmgdrq.quantize(network(), activation=AFFINE)
    with pytest.raises(ConfigError, match='0 has an affine input range'):
        mmgdrq.deploy.simulate(model, 'onnxruntime', lambda model: model(images()))
