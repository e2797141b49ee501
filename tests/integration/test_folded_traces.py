"""Folded models as torch.jit traces, and as OpenVINO converts them from torch."""

import io

import pytest
import torch
from torch import nn

import mmgdrq

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def models():
    """A quantized model and its folded form."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(8 * 36, 5),
    )
    mmgdrq.quantize(net).train()
    with torch.no_grad():
        net(X)
        return net.eval(), mmgdrq.fold(net, X)


@pytest.mark.parametrize('number', [0, 1], ids=['quantized', 'folded'])
def test_a_saved_trace_computes_the_same(models, number):
    file = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(models[number], X), file)
        file.seek(0)
        found = torch.jit.load(file)(X.flip(0))
        expected = models[number](X.flip(0))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('number', [0, 1], ids=['quantized', 'folded'])
def test_openvino_converts_it_from_torch(models, number):
    openvino = pytest.importorskip('openvino', reason='openvino is not installed')
    with torch.no_grad():
        converted = openvino.convert_model(models[number], example_input=X)
        expected = models[number](X)
    run = openvino.compile_model(converted, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    torch.testing.assert_close(torch.from_numpy(run(X.numpy())[0]), expected, rtol=1e-5, atol=1e-5)
