"""What is exported is compared with the quantized model, and not with a copy that went the same way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.deploy.deployment import export
from mmgdrq.deploy.engines import onnxruntime
from mmgdrq.deploy.engines.block import Grid
from mmgdrq.deploy.export.writer import block_model
from mmgdrq.deploy.folding import fold as fold_module
from mmgdrq.deploy.verification.blocks import compare_with
from mmgdrq.errors import ExportError
from tests.helpers.networks import Net

pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')


class NormAct(nn.BatchNorm2d):
    def forward(self, x):
        return F.silu(super().forward(x))


def trained(model, x):
    model.bbox_head = nn.Identity()
    mmgdrq.quantize(model, rules=[dict(pattern='*', weight=dict(bits=4), activation=dict(bits=8))])
    with torch.no_grad():
        for _ in range(2):
            model.train()(x)
    return model.eval()


@pytest.fixture
def pair():
    """A network whose untrained results lie far above zero, and its input."""
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        model.norm.bias.fill_(3.0)
        model.inner_norm.bias.fill_(4.0)
    return trained(model, x), x


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino', 'tensorrt'])
def test_a_right_export_agrees_with_the_quantized_model(pair, tmp_path, engine):
    model, x = pair
    (exported,) = export(mmgdrq.fold(model, x), lambda m: m(x), tmp_path, engine, reference=model)
    errors = compare_with(model, block_model(mmgdrq.fold(model, x), exported.engine), lambda m: m(x))
    assert set(errors) >= {'inner', 'wide', 'pooled', 'head', 'other'} or engine == 'tensorrt'
    assert max(errors.values(), default=0) < 1e-6


def test_a_zero_from_the_wrong_end_is_found(pair, tmp_path, monkeypatch):
    """Graph and torch share the grid, so their codes agree."""
    model, x = pair

    def wrong(lowest, highest):
        scale = (highest - lowest) / 255
        return Grid(scale, min(max(round(highest / scale), 0), 255))

    monkeypatch.setattr(onnxruntime, '_grid_of_range', wrong)
    with pytest.raises(ExportError, match=r'export: .* differs in the graph for onnxruntime from the quantized layer'):
        export(mmgdrq.fold(model, x), lambda m: m(x), tmp_path, 'onnxruntime', reference=model)


def test_a_merge_that_drops_an_activation_is_found(tmp_path, monkeypatch):
    """Folding leaves the BN where it is; merging replaces it by an identity."""
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 3, 16, 16)
    model.inner_norm = NormAct(8)
    model = trained(model, x)
    right = mmgdrq.fold(model, x)
    assert right.gdrq_folded['inner'].norm is None
    export(right, lambda m: m(x), tmp_path, 'openvino', reference=model)
    monkeypatch.setattr(fold_module, 'can_carry_scale', lambda norm: True)
    wrong = mmgdrq.fold(model, x, pairs={'stem': 'norm', 'inner': 'inner_norm'})
    with pytest.raises(ExportError, match='export: inner differs in the graph for openvino'):
        export(wrong, lambda m: m(x), tmp_path, 'openvino')
