"""ReLU6 in ONNX Runtime: codes are clipped, so that convolutions are computed in integers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmgdrq.deploy.verification.codes import compare_codes
from tests.helpers.networks import Stack, exported_of, trained_fold

pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')


def relu6_net(pool: bool = False):
    return Stack(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.MaxPool2d(2) if pool else nn.Identity(),
            nn.Conv2d(8, 8, 1),
            nn.Hardtanh(-0.5, 0.75),
            nn.Conv2d(8, 4, 1),
        )
    )


@pytest.mark.parametrize('gain', [1.0, 8.0], ids=['below 6', 'above 6'])
@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('pool', [False, True])
def test_relu6_takes_no_grid_of_its_own(tmp_path, gain, bits, pool):
    torch.manual_seed(0)
    model, x = relu6_net(pool), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for norm in (model.body[1], model.body[4]):
            norm.weight.fill_(gain)
    quant = dict(weight=dict(bits=4), activation=dict(bits=bits))
    folded = trained_fold(model, x, rules=[dict(pattern='*', **quant)])
    exported = exported_of((folded, x), tmp_path, 'onnxruntime')
    assert exported.engine.count_kernels(exported.path) == (4, 0)
    assert not any(module.output.own for module in exported.blocks)
    errors = compare_codes(exported, 'onnxruntime')
    assert errors.different == 0
    assert errors.codes > 0
    with torch.no_grad():
        expected, (found,) = folded(x), exported.part.module(x)
    limit = 0.1 if bits == 2 else 0.02  # a code of 2 bits is a third of the range, and a few lie on ties
    assert (found - expected).abs().mean() < limit * expected.abs().mean()


class Both(nn.Module):
    """A clipped value that an addition reads as well."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = F.relu6(self.first(x))
        return y + self.second(y)


def test_a_clipped_value_that_is_read_elsewhere_stays_clipped(tmp_path):
    torch.manual_seed(0)
    model, x = Stack(Both()), 20 * torch.randn(2, 3, 16, 16)
    folded = trained_fold(model, x, rules=[dict(pattern='*', weight=dict(bits=8), activation=dict(bits=8))])
    exported = exported_of((folded, x), tmp_path, 'onnxruntime')
    assert compare_codes(exported, 'onnxruntime').different <= 1
    (found,) = exported.engine.open(exported.path)(x.numpy())
    expected = folded(x).detach()
    assert (torch.from_numpy(found) - expected).abs().mean() < 0.02 * expected.abs().mean()
