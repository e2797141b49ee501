"""Where the parts of a model begin and end, and which models are refused."""

from contextlib import nullcontext

import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmgdrq
from mmgdrq.deploy.deployment import export
from mmgdrq.errors import ExportError
from mmgdrq.quantized_model.dense_parts import parts_of

pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x, before=None, double=False):
        self.last = self.again(torch.relu(self.conv(x if before is None else x + before)))
        return 2 * self.last if double else self.last


class Rpn(Head):
    def forward(self, feats):
        return super().forward(feats[0])


class TwoStage(nn.Module):
    """Two heads in a row on the same regions; ``call`` runs the second one."""

    def __init__(self, call) -> None:
        super().__init__()
        self.conv, self.call = nn.Conv2d(3, 8, 3, padding=1), call
        self.rpn_head, self.roi_head = Rpn(), nn.Module()
        self.roi_head.bbox_head = nn.ModuleList([Head(), Head()])

    def extract_feat(self, x):
        x = torch.relu(self.conv(x))
        return x, x[:, :, ::2, ::2]

    def forward(self, x):
        feats = self.extract_feat(x)
        proposals = self.rpn_head(feats)
        first, second = self.roi_head.bbox_head
        regions = feats[1][:, :, :4, :4]
        before = first(regions)
        return dict(proposals=proposals, boxes=[before, self.call(second, regions, before)])


class OneStage(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), head

    def extract_feat(self, x):
        return torch.relu(self.conv(x))

    def forward(self, x):
        return self.head(self.extract_feat(x))


class NeedsMore(Head):
    """As heads of transformers that ask for the data samples."""

    def forward(self, x, data_samples):
        return super().forward(x)


class WithSamples(OneStage):
    def forward(self, x):
        return self.head(self.extract_feat(x), data_samples=None)


class ReadsHead(OneStage):
    """Uses what the head leaves behind."""

    def forward(self, x):
        self.head.last = None
        return super().forward(x), self.head.last * 2


def exported(model, folder):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, 8)
    mmgdrq.quantize(model, weight=dict(bits=4), activation=dict(bits=8))
    with torch.no_grad():
        model.train()(x)
    return export(mmgdrq.fold(model.eval(), example=x), lambda m: m(x), folder, 'onnxruntime')


def test_a_model_with_two_stages_has_a_graph_for_each_head(tmp_path):
    parts = exported(TwoStage(lambda head, x, before: head(x)), tmp_path)
    assert [part.part.name for part in parts] == ['dense', 'bbox_head_0', 'bbox_head_1']


@pytest.mark.parametrize(
    'call', [lambda head, x, before: head(x, before), lambda head, x, before: head(x, before=before)]
)
def test_a_head_that_gets_two_tensors_is_refused(tmp_path, call):
    with pytest.raises(ExportError, match='bbox_head_1 is called with 2 tensors; a graph takes one'):
        exported(TwoStage(call), tmp_path)


def test_a_replaced_part_takes_no_second_tensor():
    model = TwoStage(None)
    parts_of(model)[2].replace_by(lambda x: x)
    head, x = model.roi_head.bbox_head[1], torch.rand(1, 8, 4, 4)
    assert torch.equal(head(x, None), x)
    with pytest.raises(ExportError, match='bbox_head_1 is called with 2 tensors'):
        head(x, before=x)


def test_a_head_that_is_called_otherwise_than_a_graph_is_refused(tmp_path):
    with pytest.raises(ExportError, match='TwoStage has other results with an engine in the place of dense, bbox_head'):
        exported(TwoStage(lambda head, x, before: head(x, double=True)), tmp_path)


def test_a_model_that_does_not_run_with_an_engine_is_refused(tmp_path):
    with pytest.raises(ExportError, match='ReadsHead does not run with an engine in the place of dense: TypeError'):
        exported(ReadsHead(Head()), tmp_path)


def test_a_head_that_needs_more_than_a_tensor_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r'dense of WithSamples does not run on one tensor alone.*data_samples'):
        exported(WithSamples(NeedsMore()), tmp_path)


@pytest.mark.parametrize(
    ('heads', 'message'),
    [
        (dict(bbox_head=Head(), mask_head=Head()), 'OneStage has a mask_head beside its bbox_head'),
        (dict(decode_head=nn.ModuleList([Head(), Head()])), 'OneStage has several decode heads'),
    ],
    ids=['YOLACT', 'OCRNet'],
)
def test_kinds_of_models_without_dense_parts(heads, message):
    model = OneStage(None)
    for name, head in heads.items():
        setattr(model, name, head)
    with pytest.raises(ExportError, match=message):
        parts_of(model)


def test_simulation_says_what_does_not_run():
    model = mmgdrq.quantize(WithSamples(NeedsMore()))
    with pytest.raises(ExportError, match='WithSamples does not run on made-up images'):
        mmgdrq.deploy.simulate(model)


@pytest.mark.parametrize('flow', [True, False])
def test_mask_heads_that_get_features_of_one_another_are_refused(flow):
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    config = get_config('mmdet::htc/htc-without-semantic_r50_fpn_1x_coco.py')
    config.model.roi_head.mask_info_flow = flow
    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    refused = pytest.raises(ExportError, match='each mask_head of HybridTaskCascade gets the features of the one')
    with refused if flow else nullcontext():
        parts_of(model)
