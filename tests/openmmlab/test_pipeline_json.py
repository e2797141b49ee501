"""What a pipeline file cannot say is refused by name, and the reason is kept."""

import copy
import json

import pytest
from mmdet.models.dense_heads import FCOSHead, GFLHead, RetinaHead
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmgdrq.errors import ExportError
from mmgdrq.openmmlab.config_parts import without_weights
from mmgdrq.openmmlab.deployed.building import model_config
from mmgdrq.openmmlab.pipeline_json import describe, write_pipeline
from mmgdrq.openmmlab.pipeline_json.one_stage import describe_nms
from mmgdrq.openmmlab.pipeline_json.preprocessing import describe_preprocessing
from mmgdrq_runtime.pipeline import PIPELINE, read_pipeline

ONE = '{"type": null, "context": null, "children_spec": []}'
LOAD = dict(type='LoadImageFromFile')


def graphs(leaves: int) -> dict:
    """Of a manifest, with a dense part of so many outputs."""
    inner = ', '.join([ONE] * leaves)
    tree = f'[1, {{"type": "builtins.list", "context": "null", "children_spec": [{inner}]}}]'
    return {'onnxruntime': {'dense': {'tree': tree}}}


@pytest.fixture(scope='module')
def retinanet():
    cfg = Config.fromfile('configs/gdrq/retinanet_r18_fpn_digits.py')
    init_default_scope('mmdet')
    return MODELS.build(without_weights(model_config(cfg))), cfg


def test_a_detector_that_is_known(retinanet):
    model, cfg = retinanet
    content = describe(model, cfg, graphs(10))
    assert content['decoder']['type'] == 'dense'
    assert content['decoder']['factors'] is False
    assert content['classes'] == list('0123456789')
    assert content['palette'][0] == [220, 20, 60], 'of the class of the data set'
    assert [step['type'] for step in content['preprocessing']['steps']] == ['resize']


class OtherScores(RetinaHead):
    def _predict_by_feat_single(self, *args, **kwargs):
        return super()._predict_by_feat_single(*args, **kwargs)


class OtherBoxes(GFLHead):
    def anchor_center(self, anchors):
        return anchors[:, :2]


class OtherLayers(FCOSHead):
    """What a graph holds may differ."""

    def forward_single(self, *args):
        return super().forward_single(*args)


def with_head(model: nn.Module, own: nn.Module) -> nn.Module:
    """A copy of a model that shares all but its head."""
    other = copy.copy(model)
    other._modules = {**model._modules, 'bbox_head': own}
    return other


def head(kind, **settings) -> nn.Module:
    test = Config(dict(score_thr=0.1, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5))
    return kind(3, 32, test_cfg=test._cfg_dict, **settings).eval()


@pytest.mark.parametrize('kind', [OtherScores, OtherBoxes])
def test_a_head_that_overrides_how_it_predicts(retinanet, kind):
    model, cfg = retinanet
    settings = {}
    if kind is OtherBoxes:
        anchors = dict(type='AnchorGenerator', ratios=[1.0], scales=[8], strides=[8, 16])
        settings = dict(loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True), anchor_generator=anchors)
    with pytest.raises(ExportError, match=f'{kind.__name__}: does not predict as'):
        describe(with_head(model, head(kind, **settings)), cfg, graphs(10))


def test_a_head_that_overrides_its_layers_only(retinanet):
    model, cfg = retinanet
    assert describe(with_head(model, head(OtherLayers)), cfg, graphs(15))['decoder']['factors'] is True


@pytest.mark.parametrize(
    ('cfg', 'named'),
    [
        (dict(type='soft_nms', iou_threshold=0.5), 'soft_nms'),
        (dict(type='nms', iou_threshold=0.5, score_threshold=0.2), 'score_threshold'),
    ],
)
def test_a_suppression_that_is_not_known(cfg, named):
    with pytest.raises(ExportError, match=named):
        describe_nms(cfg)


@pytest.mark.parametrize(
    ('step', 'named'),
    [
        (dict(type='RandomFlip', prob=0.5), 'RandomFlip'),
        (dict(type='Resize', scale_factor=0.5), 'scale_factor'),
        (dict(type='Resize', scale=(3, 4), interpolation='bicubic'), 'bicubic'),
        (dict(type='Pad', size=(3, 4), padding_mode='reflect'), 'reflect'),
        (dict(type='Pad', size=(3, 4), pad_val=0.5), '0.5'),
        (dict(type='mmpretrain.CenterCrop', crop_size=3, auto_pad=True), 'auto_pad'),
        (dict(type='Normalize', mean=[0], std=[1]), 'Normalize'),
    ],
    ids=str,
)
def test_a_transform_that_is_not_known(retinanet, step, named):
    model, _ = retinanet
    init_default_scope('mmdet')
    with pytest.raises(ExportError, match=named):
        describe_preprocessing(dict(pipeline=[LOAD, step]), model.data_preprocessor)


@pytest.mark.parametrize(
    'load',
    [dict(LOAD, to_float32=True), dict(LOAD, color_type='grayscale'), dict(type='LoadImageFromNDArray')],
    ids=str,
)
def test_images_that_are_read_otherwise(retinanet, load):
    with pytest.raises(ExportError, match='transform Load'):
        describe_preprocessing(dict(pipeline=[load]), retinanet[0].data_preprocessor)


def test_data_sets_that_hand_over_images_in_gray(retinanet):
    with pytest.raises(ExportError, match='data set MNIST: images in gray are not known'):
        describe_preprocessing(dict(type='MNIST', pipeline=[]), retinanet[0].data_preprocessor)


def test_the_reason_is_written_and_told(retinanet, tmp_path, monkeypatch):
    model, cfg = retinanet
    monkeypatch.setattr('mmgdrq.openmmlab.pipeline_json.read_manifest', lambda path: {'graphs': graphs(10)})
    assert write_pipeline(tmp_path, model, cfg) == ''
    assert read_pipeline(tmp_path, graphs(10))['decoder']['type'] == 'dense'
    reason = write_pipeline(tmp_path, with_head(model, head(OtherScores)), cfg)
    assert 'OtherScores' in reason
    assert json.loads((tmp_path / PIPELINE).read_text())['reason'] == reason
    with pytest.raises(ExportError, match=r'load_deployed: OtherScores'):
        read_pipeline(tmp_path, graphs(10))
