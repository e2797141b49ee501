"""Real OpenMMLab models with the seams of each package: engines compute what torch computes, in integers."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmgdrq
from mmgdrq.deploy.deployment import export
from mmgdrq.deploy.engines import find_engine
from mmgdrq.deploy.verification.codes import compare_codes
from mmgdrq_runtime.engines import open_engine

onnx = pytest.importorskip('onnx', reason='onnx is not installed')
ENGINES = ('onnxruntime', 'openvino')
BN = dict(type='BN')
DILATED = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), base_channels=8, stem_channels=8, norm_cfg=BN)


def classifier(**backbone) -> dict:
    head = dict(type='LinearClsHead', in_channels=backbone.pop('width'), num_classes=10)
    return dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head)


def segmentor(**head) -> dict:
    backbone = dict(type='ResNetV1c', depth=18, **DILATED)
    head = dict(in_channels=64, in_index=3, channels=16, num_classes=5, norm_cfg=BN, **head)
    return dict(type='EncoderDecoder', backbone=backbone, decode_head=head, test_cfg=dict(mode='whole'))


RETINA = dict(
    type='RetinaNet',
    backbone=dict(type='ResNet', depth=18, base_channels=8, norm_cfg=BN),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, start_level=1, num_outs=4),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=3,
        in_channels=16,
        feat_channels=16,
        stacked_convs=2,
        anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], scales=[1], strides=[8, 16, 32, 64]),
    ),
)
SSD = dict(
    type='SingleStageDetector',
    backbone=dict(type='ResNet', depth=18, base_channels=8, norm_cfg=BN, out_indices=(1, 2, 3)),
    bbox_head=dict(
        type='SSDHead',
        in_channels=(16, 32, 64),
        num_classes=3,
        anchor_generator=dict(
            type='SSDAnchorGenerator',
            strides=[8, 16, 32],
            ratios=[[2], [2], [2]],
            min_sizes=[8, 16, 32],
            max_sizes=[16, 32, 64],
            input_size=64,
        ),
    ),
)
MODELS_OF = {
    'ResNet-18': ('mmpretrain', classifier(type='ResNet', depth=18, base_channels=8, stem_channels=8, width=64)),
    'VGG-BN': ('mmpretrain', classifier(type='VGG', depth=11, norm_cfg=BN, width=512)),
    'MobileNetV2': ('mmpretrain', classifier(type='MobileNetV2', widen_factor=0.25, width=1280)),
    'FCN': ('mmseg', segmentor(type='FCNHead', num_convs=1)),
    'PSPNet': ('mmseg', segmentor(type='PSPHead', pool_scales=(1, 2, 3, 6))),
    'RetinaNet': ('mmdet', RETINA),
    'SSD': ('mmdet', SSD),
}


def head_of(model: nn.Module):
    return next(getattr(model, name) for name in ('bbox_head', 'decode_head', 'head') if hasattr(model, name))


@pytest.fixture(scope='module', params=MODELS_OF)
def folded(request):
    """A folded W2A4 model with its input and a function that runs it there."""
    scope, config = MODELS_OF[request.param]
    init_default_scope(scope)
    torch.manual_seed(0)
    with torch.no_grad():
        model = MODELS.build(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    mmgdrq.quantize(model, weight=dict(bits=2), activation=dict(bits=4))
    x = torch.randn(2, 3, 64, 64)

    def run(target: nn.Module):
        return head_of(target)(target.extract_feat(x))

    model.forward = lambda: run(model)  # a training iteration is a call of the model itself
    with torch.no_grad():
        for _ in range(2):
            model.train()()
    del model.forward
    return mmgdrq.fold(model.eval(), example=run), run


@pytest.mark.parametrize('engine', ENGINES)
def test_every_block_has_the_codes_of_torch_and_an_integer_kernel(folded, engine, tmp_path):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    folded, run = folded
    (exported,) = export(folded, run, tmp_path, engine)
    onnx.checker.check_model(str(exported.path), full_check=True)
    errors = compare_codes(exported, engine)
    assert errors.codes > 10_000
    assert errors.different == 0, errors
    assert errors.results < 1e-5
    assert find_engine(engine).count_kernels(exported.path)[0] == len(exported.blocks) >= len(folded.gdrq_folded)


@pytest.mark.parametrize('engine', ENGINES)
def test_the_graph_takes_other_sizes(folded, engine, tmp_path):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    folded, run = folded
    (exported,) = export(folded, run, tmp_path, engine)
    x = torch.randn(1, 3, 96, 80)
    found = open_engine(engine, exported.path)(x.numpy())
    with torch.no_grad():
        expected = exported.part.module(x)
    assert len(expected) == len(found)
    for ours, theirs in zip(expected, found):
        assert ours.shape == theirs.shape
        # one tie that falls differently may spread, so not exactly
        assert (ours - torch.from_numpy(theirs)).abs().mean() < 0.05 * ours.abs().mean()


def test_weights_of_a_shared_head_are_stored_once(folded, tmp_path):
    folded, run = folded
    (exported,) = export(folded, run, tmp_path, 'openvino')
    graph = onnx.load(str(exported.path)).graph
    constants = [node.attribute[0].t.raw_data for node in graph.node if node.op_type == 'Constant']
    large = [content for content in constants if len(content) > 300]
    assert len(large) == len(set(large)) > 1
