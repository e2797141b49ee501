"""One-stage decoders agree with mmdet's heads on any maps."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope

from mmgdrq.openmmlab.pipeline_json import as_json
from mmgdrq.openmmlab.pipeline_json.one_stage import describe_dense
from mmgdrq_runtime.decoders import DECODERS
from mmgdrq_runtime.pipeline import DECODER
from mmgdrq_runtime.preprocessing import ImageInfo

CLASSES = 3
STRIDES = [8, 16]
SHAPE = (64, 96)
NMS = dict(type='nms', iou_threshold=0.5)
TEST = dict(nms_pre=200, min_bbox_size=0, score_thr=0.05, nms=NMS, max_per_img=40)
ANCHORS = dict(type='AnchorGenerator', ratios=[0.5, 1.0], octave_base_scale=2, scales_per_octave=2, strides=STRIDES)
ONE = dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=2, scales_per_octave=1, strides=STRIDES)
SSD = dict(
    type='SSDAnchorGenerator', strides=STRIDES, ratios=[[2], [2]], min_sizes=[8, 20], max_sizes=[20, 40], input_size=64
)
YOLO = dict(type='YOLOAnchorGenerator', base_sizes=[[(10, 13), (16, 30)], [(30, 61), (62, 45)]], strides=STRIDES)
DELTAS = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
FOCAL = dict(type='QualityFocalLoss', use_sigmoid=True)
SMALL = dict(num_classes=CLASSES, in_channels=4, feat_channels=4)
HEADS = {
    'RetinaNet': (dict(type='RetinaHead', **SMALL, stacked_convs=1, anchor_generator=ANCHORS), 4 * CLASSES, 16),
    'SSD': (
        dict(
            type='mmgdrq.SSDHead',
            num_classes=CLASSES,
            in_channels=(4, 4),
            anchor_generator=SSD,
            bbox_coder=dict(DELTAS, add_ctr_clamp=True, ctr_clamp=5),
        ),
        4 * (CLASSES + 1),
        16,
    ),
    'ATSS': (
        dict(type='ATSSHead', **SMALL, stacked_convs=1, anchor_generator=ONE, bbox_coder=DELTAS, norm_cfg=None),
        CLASSES,
        4,
        1,
    ),
    'FCOS': (dict(type='FCOSHead', **SMALL, stacked_convs=1, strides=STRIDES, norm_cfg=None), CLASSES, 4, 1),
    'RTMDet': (
        dict(
            type='RTMDetHead',
            **SMALL,
            stacked_convs=1,
            anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=STRIDES),
            bbox_coder=dict(type='DistancePointBBoxCoder'),
            loss_cls=FOCAL,
            with_objectness=False,
            norm_cfg=None,
        ),
        CLASSES,
        4,
    ),
    'GFL': (
        dict(type='GFLHead', **SMALL, stacked_convs=1, anchor_generator=ONE, reg_max=7, loss_cls=FOCAL, norm_cfg=None),
        CLASSES,
        32,
    ),
    'YOLOX': (dict(type='YOLOXHead', **SMALL, stacked_convs=1, strides=STRIDES), CLASSES, 4, 1),
    'YOLOv3': (
        dict(
            type='YOLOV3Head',
            num_classes=CLASSES,
            in_channels=[4, 4],
            out_channels=[4, 4],
            anchor_generator=YOLO,
            featmap_strides=STRIDES,
        ),
        2 * (5 + CLASSES),
    ),
}
DISTANCES = ('FCOS', 'RTMDet')


def head_of(name: str, **test):
    init_default_scope('mmdet')
    head, *channels = HEADS[name]
    own = dict(conf_thr=0.3) if name == 'YOLOv3' else {}
    return MODELS.build(dict(head, test_cfg=ConfigDict({**TEST, **own, **test}))).eval(), channels


def maps_of(rng, name: str, channels, spread: float) -> list[np.ndarray]:
    """Maps of all levels, kind after kind, as the graph gives them."""
    maps = []
    for kind, number in enumerate(channels):
        for stride in STRIDES:
            values = rng.normal(0, spread, (number, SHAPE[0] // stride, SHAPE[1] // stride)).astype(np.float32)
            maps.append(np.exp(values) * stride if kind == 1 and name in DISTANCES else values)
    return maps


def expected(head, maps: list[np.ndarray], info: ImageInfo):
    levels = len(STRIDES)
    groups = [[torch.from_numpy(m.copy())[None] for m in maps[i : i + levels]] for i in range(0, len(maps), levels)]
    groups += [None] if isinstance(head, MODELS.get('mmdet.RetinaHead')) else []
    meta = dict(img_shape=info.input_shape, scale_factor=info.scale_factor, ori_shape=info.shape)
    with torch.no_grad():
        return head.predict_by_feat(*groups, batch_img_metas=[meta], rescale=True)[0]


def found(head, maps: list[np.ndarray], info: ImageInfo):
    spec = as_json(describe_dense(head, len(maps)))
    DECODER(spec, 'decoder')
    return DECODERS[spec['type']](maps, info, spec, {})


def assert_same(result, reference):
    """Equal up to the last bits of exponentials, which may also swap neighbours whose scores are that close."""
    assert len(result) == len(reference)
    scores, boxes = reference.scores.numpy(), reference.bboxes.numpy()
    assert np.abs(result.scores - scores).max(initial=0) < 1e-5
    order, other = (
        np.lexsort((*b.T.round(1), n)) for b, n in ((result.boxes, result.labels), (boxes, reference.labels))
    )
    assert result.labels[order].tolist() == reference.labels.numpy()[other].tolist()
    assert np.abs(result.boxes[order] - boxes[other]).max(initial=0) < 1e-4


@pytest.mark.parametrize('name', HEADS)
def test_boxes_scores_and_labels(name):
    head, channels = head_of(name)

    @given(
        st.integers(0, 10**6),
        st.sampled_from([1.0, 2.0]),
        st.sampled_from([(1.0, 1.0), (0.5, 0.7), (1199 / 640, 800 / 427)]),
    )
    def check(seed, spread, scale):
        maps = maps_of(np.random.default_rng(seed), name, channels, spread)
        info = ImageInfo((50, 80), (60, 90), scale, SHAPE)  # the maps reach into the padding
        assert_same(found(head, maps, info), expected(head, maps, info))

    check()


@pytest.mark.parametrize(
    'test',
    [
        dict(score_thr=0.9999),  # no detections
        dict(nms_pre=5),
        dict(nms_pre=100_000, max_per_img=100_000, score_thr=0.0),
        dict(min_bbox_size=6),
        dict(nms=dict(NMS, class_agnostic=True)),
        dict(nms=dict(NMS, split_thr=10)),
    ],
    ids=str,
)
@pytest.mark.parametrize('name', HEADS)
def test_settings(name, test):
    head, channels = head_of(name, **test)
    maps = maps_of(np.random.default_rng(0), name, channels, 1.5)
    info = ImageInfo((50, 80), (60, 90), (0.5, 0.7), SHAPE)
    assert_same(found(head, maps, info), expected(head, maps, info))


@pytest.mark.parametrize('name', ['RetinaNet', 'FCOS', 'YOLOv3'])
def test_without_a_limit_the_lowest_candidate_is_lost(name):
    """As in mmdet, where the default -1 ends the slice before the last one."""
    head, channels = head_of(name)
    del head.test_cfg['nms_pre']
    maps = maps_of(np.random.default_rng(1), name, channels, 1.5)
    info = ImageInfo((50, 80), (60, 90), (1.0, 1.0), SHAPE)
    assert_same(found(head, maps, info), expected(head, maps, info))


def test_ties_go_to_the_first_location():
    """Quantized logits are equal often; torch leaves their order open, here it is that of the locations."""
    head, channels = head_of('RetinaNet', nms=dict(NMS, iou_threshold=1.0), nms_pre=10, max_per_img=10)
    maps = [np.zeros_like(m) for m in maps_of(np.random.default_rng(0), 'RetinaNet', channels, 1.0)]
    result = found(head, maps, ImageInfo(SHAPE, SHAPE))
    anchors = head.prior_generator.base_anchors[0].numpy().clip(0)
    assert result.labels.tolist() == [0, 1, 2] * 3 + [0]
    assert np.allclose(result.boxes[:10:3], anchors)


@pytest.mark.parametrize('name', HEADS)
def test_one_class(name):
    init_default_scope('mmdet')
    config, *channels = HEADS[name]
    config = dict(config, num_classes=1, test_cfg=ConfigDict({**TEST, 'conf_thr': 0.3}))
    channels[0] = {'SSD': 8, 'YOLOv3': 12}.get(name, channels[0] // CLASSES)
    head = MODELS.build(config).eval()
    maps = maps_of(np.random.default_rng(2), name, channels, 1.5)
    info = ImageInfo((50, 80), (60, 90), (0.5, 0.5), SHAPE)
    assert_same(found(head, maps, info), expected(head, maps, info))
