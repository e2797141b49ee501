"""Folded layers compute in float32, whatever is asked of them."""

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.deploy.folding.folded_layers import FoldedLayer
from mmgdrq.errors import QuantizationError
from tests.helpers.folding import ready

X = torch.rand(2, 64, 9, 9, generator=torch.Generator().manual_seed(3)) * 40


def net(*layers):
    torch.manual_seed(0)
    return ready(nn.Sequential(*layers), X, dict(bits=8), dict(bits=8))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('norm', [True, False])
def test_autocast_changes_nothing(dtype, norm):
    """Sums of 576 products of 8-bit codes pass the largest float16."""
    model = net(nn.Conv2d(64, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity())
    folded = mmgdrq.fold(model, X)
    expected = folded(X)
    with torch.autocast('cpu', dtype=dtype):
        found = folded(X)
    assert float(folded.get_submodule('0')(X).detach().abs().max()) > 65504 or not norm
    assert found.isfinite().all()
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


def test_autocast_changes_no_linear_layer():
    model = net(nn.Flatten(), nn.Linear(64 * 81, 6))
    folded = mmgdrq.fold(model, X)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = folded(X)
    assert torch.equal(found, folded(X))


@pytest.mark.parametrize('convert', ['half', 'bfloat16', 'double'])
def test_a_conversion_is_refused(convert):
    folded = getattr(mmgdrq.fold(net(nn.Conv2d(64, 6, 3), nn.BatchNorm2d(6)), X), convert)()
    with pytest.raises(QuantizationError, match=r'a folded convolution was converted to torch.*; expected float32'):
        folded(getattr(X, convert)())


def test_what_a_layer_became_survives_json():
    layer = FoldedLayer('conv', (6, 4, 3, 3), (-8, 7), 4, 2, -3, 2, norm='bn')
    values = layer.as_json()
    assert 'input_grid' not in values
    assert FoldedLayer.from_json({**values, 'shape': [6, 4, 3, 3], 'input': [-8, 7]}) == layer
    for change in (dict(kind=3), dict(input=[0, 1.5]), dict(scaled=1), dict(weight_bits='2'), dict(more=1)):
        with pytest.raises(ValueError, match=r'is |unknown'):
            FoldedLayer.from_json({**values, **change})
