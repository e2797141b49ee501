"""Layers, weights and inputs that are float in an exported graph."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmgdrq.deploy.engines import find_engine
from mmgdrq.deploy.verification.codes import compare_codes
from mmgdrq_runtime.engines import open_engine
from tests.helpers.networks import Net, Stack, exported_of, trained_fold

pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')


class WithTransposed(Net):
    """A transposed convolution has no integer form; it runs in float between rounded inputs and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.last = nn.Conv2d(8, 3, 1)

    def extract_feat(self, x):
        x = F.max_pool2d(torch.relu(self.norm(self.stem(x))), 2)
        return self.last(torch.relu(self.up(x)))


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_layers_without_an_integer_form_are_exported_in_float(tmp_path, engine):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    torch.manual_seed(0)
    model, x = WithTransposed(), torch.rand(2, 3, 16, 16)
    unused = ('inner', 'wide', 'pooled', 'head', 'other')
    for name in unused:
        delattr(model, name)
    folded = trained_fold(model, x, rules=[dict(pattern='*', weight=dict(bits=2), activation=dict(bits=4))])
    exported = exported_of((folded, x), tmp_path, engine)
    assert find_engine(engine).count_kernels(exported.path)[0] == len(exported.blocks) == 2
    assert compare_codes(exported, engine).share < 1e-3
    found = torch.from_numpy(open_engine(engine, exported.path)(x.numpy())[0])
    expected = folded(x).detach()
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()


FLOAT_PARTS = {
    'float weights': (dict(weight=dict(bits=32)), 5),
    'float inputs': (dict(activation=dict(bits=32)), 0),
    'a float layer': (dict(rules=[dict(pattern='body.5', skip=True)]), 4),
    'a layer with float inputs': (dict(rules=[dict(pattern='body.5', activation=dict(bits=32))]), 4),
    'a layer with float weights': (dict(rules=[dict(pattern='body.5', weight=dict(bits=32))]), 5),
}


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('case', FLOAT_PARTS)
def test_float_weights_and_inputs_stay_float(tmp_path, engine, case):
    """Layer 5 reads the result of a quantized layer without anything in between."""
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    options, inputs = FLOAT_PARTS[case]
    torch.manual_seed(0)
    conv, norm = lambda: nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), conv(), nn.BatchNorm2d(8), conv(), nn.ReLU(), conv())
    model, x = Stack(nn.Sequential(*body, nn.ReLU(), nn.Conv2d(8, 4, 1))), torch.rand(2, 3, 16, 16)
    folded = trained_fold(model, x, **{**dict(weight=dict(bits=2), activation=dict(bits=4)), **options})
    exported = exported_of((folded, x), tmp_path, engine)
    errors = compare_codes(exported, engine)
    assert len(exported.blocks) == 5 - ('skip' in str(options))
    assert sum(module.block.limits is not None for module in exported.blocks) == inputs
    assert (errors.codes > 0) == (inputs > 0)
    assert errors.different <= 1
    assert errors.results < 1e-5


@pytest.mark.parametrize('options', [dict(weight=dict(bits=32)), dict(activation=dict(bits=32))], ids=str)
def test_the_float_form_of_half_quantized_layers_is_float(tmp_path, options):
    """Else a network would be compared with itself."""
    torch.manual_seed(0)
    stack = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1))
    model, x = Stack(stack), torch.rand(2, 3, 16, 16)
    folded = trained_fold(model, x, **{**dict(weight=dict(bits=2), activation=dict(bits=8)), **options})
    exported = exported_of((folded, x), tmp_path, 'onnxruntime', 'float')
    assert b'quantizelinear' not in exported.path.read_bytes().lower()
    (found,) = open_engine('onnxruntime', exported.path)(x.numpy())
    expected = folded(x).detach()
    assert (torch.from_numpy(found) - expected).abs().mean() < 0.02 * expected.abs().mean()
