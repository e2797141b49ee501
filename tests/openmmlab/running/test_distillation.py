"""What a teacher and its student are compared by in models of OpenMMLab."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from torch import nn

import mmgdrq
from mmgdrq.errors import ConfigError
from mmgdrq.openmmlab.running.distillation import distiller_of, taps_of
from mmgdrq.training.distillation import Distillation, make_teacher
from tests.openmmlab.test_builder import batch, detector_config

SIZE = 64
NECK = dict(type='mmdet.FPN', in_channels=[16, 32], out_channels=16, num_outs=3)
BACKBONE = dict(depth=18, base_channels=8, num_stages=3, out_indices=(1, 2), strides=(1, 2, 2), dilations=(1, 1, 1))
BACKBONE.update(norm_cfg=dict(type='BN'), norm_eval=False)
PREPROCESSOR = dict(type='mmdet.DetDataPreprocessor', mean=[127.5] * 3, std=[60.0] * 3)


def one_stage(head: dict, **model) -> nn.Module:
    test_cfg = dict(nms_pre=100, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)
    return MODELS.build(
        dict(
            type='mmdet.SingleStageDetector',
            data_preprocessor=PREPROCESSOR,
            backbone=dict(type='mmdet.ResNet', **BACKBONE),
            neck=NECK,
            bbox_head=dict(num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1, **head),
            test_cfg=test_cfg,
            **model,
        )
    )


def retinanet(tmp_path) -> nn.Module:
    anchors = dict(type='mmdet.AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0])
    assigner = dict(type='mmdet.MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0)
    head = dict(type='mmdet.RetinaHead', anchor_generator=dict(**anchors, strides=[8, 16, 32]))
    sampler = dict(type='mmdet.PseudoSampler')
    return one_stage(head, train_cfg=dict(assigner=assigner, sampler=sampler, allowed_border=-1, pos_weight=-1))


def fcos(tmp_path) -> nn.Module:
    ranges = ((-1, 32), (32, 64), (64, 10000))
    return one_stage(dict(type='mmdet.FCOSHead', strides=[8, 16, 32], regress_ranges=ranges, norm_cfg=dict(type='BN')))


def faster_rcnn(tmp_path) -> nn.Module:
    config = copy.deepcopy(detector_config(tmp_path).model)
    config.pop('quant')
    config.type = config.pop('base_type')
    return MODELS.build(dict(config, type='mmdet.FasterRCNN'))


def detector_batch(model: nn.Module) -> dict:
    return model.data_preprocessor(batch(), training=True)


def segmentor(tmp_path) -> nn.Module:
    norm = dict(type='BN')
    return MODELS.build(
        dict(
            type='mmseg.EncoderDecoder',
            backbone=dict(type='mmseg.ResNet', **BACKBONE),
            decode_head=dict(
                type='mmseg.FCNHead', in_channels=32, channels=8, num_convs=1, in_index=1, num_classes=4, norm_cfg=norm
            ),
        )
    )


def segmentation_batch(model: nn.Module) -> dict:
    from mmseg.structures import SegDataSample

    samples = [SegDataSample(metainfo=dict(img_shape=(SIZE, SIZE))) for _ in range(2)]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(4, (1, SIZE, SIZE)))
    return dict(inputs=torch.randn(2, 3, SIZE, SIZE), data_samples=samples)


def classifier(tmp_path) -> nn.Module:
    backbone = dict(type='mmpretrain.ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8)
    head = dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=64)
    neck = dict(type='mmpretrain.GlobalAveragePooling')
    return MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=backbone, neck=neck, head=head))


def classification_batch(model: nn.Module) -> dict:
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(label) for label in (1, 3)]
    return dict(inputs=torch.randn(2, 3, 32, 32), data_samples=samples)


CASES = {
    'RetinaNet': (retinanet, detector_batch, {'features', 'bbox_cls', 'bbox_box'}),
    'FCOS': (fcos, detector_batch, {'features', 'bbox_cls', 'bbox_box', 'bbox_score'}),
    'Faster R-CNN': (faster_rcnn, detector_batch, {'features', 'rpn_cls', 'rpn_box', 'roi_cls', 'roi_box'}),
    'FCN': (segmentor, segmentation_batch, {'pixels'}),
    'classifier': (classifier, classification_batch, {'logits'}),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """Model, data and names of the losses."""
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    build, data, names = CASES[request.param]
    scope = {'FCN': 'mmseg', 'classifier': 'mmpretrain'}.get(request.param, 'mmdet')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = build(tmp_path)
        model.init_weights()
        yield model, data(model), names


def test_the_losses_join_those_of_the_task(case):
    model, data, names = case
    teacher = make_teacher(model)
    mmgdrq.quantize(model)
    distiller_of(model, teacher, Distillation())
    losses = model.train()(**data, mode='loss')
    found = {key: value for key, value in losses.items() if 'distill' in key}
    assert set(found) == {f'loss_distill_{name}' for name in names}
    assert all(bool(value.isfinite()) and value.item() > 0 for value in found.values())
    assert len(losses) > len(found)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(bool((p.grad != 0).any()) for p in model.backbone.parameters() if p.grad is not None)


def test_a_student_that_computes_what_its_teacher_does_learns_nothing_from_it(case):
    """In the float stage, with BN in evaluation mode."""
    model, data, names = case
    teacher = make_teacher(model)
    mmgdrq.quantize(model, stage='float')
    distiller_of(model, teacher, Distillation())
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    losses = model(**data, mode='loss')
    assert all(losses[f'loss_distill_{name}'].item() == pytest.approx(0, abs=1e-4) for name in names)


def test_a_classifier_hears_its_teacher_more_than_the_labels(tmp_path):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = classifier(tmp_path)
    data = classification_batch(model)
    mmgdrq.quantize(model, stage='float')
    alone = copy.deepcopy(model).train()(**data, mode='loss')['loss']
    teacher = make_teacher(classifier_like(model))
    distiller_of(model, teacher, Distillation(weight=0.9))
    assert model.train()(**data, mode='loss')['loss'].item() == pytest.approx(0.1 * alone.item(), rel=1e-5)


def classifier_like(model: nn.Module) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return classifier(None)


def test_a_detr_has_its_features_compared():
    """Its head takes more than features, and gives no lists over levels."""
    model = nn.Module()
    model.neck, model.bbox_head = nn.Identity(), nn.Linear(2, 2)
    taps, is_classifier = taps_of(model, Distillation())
    assert ([tap.name for tap in taps], is_classifier) == (['features'], False)


def test_nothing_to_compare():
    with pytest.raises(ConfigError, match='distill: Linear has neither'):
        taps_of(nn.Linear(2, 2), Distillation())
