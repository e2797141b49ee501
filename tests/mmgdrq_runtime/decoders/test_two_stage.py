"""Two-stage decoders agree with mmdet's detectors, whose heads are small networks with random weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope

from mmgdrq.openmmlab.pipeline_json import as_json
from mmgdrq.openmmlab.pipeline_json.two_stage import describe_two_stage
from mmgdrq_runtime.decoders import DECODERS
from mmgdrq_runtime.pipeline import DECODER
from mmgdrq_runtime.preprocessing import ImageInfo
from tests.helpers.stable_order import keep_order_of_equals

CHANNELS, CLASSES, STRIDES, SHAPE = 4, 3, [8, 16], (96, 128)
PLAIN = ImageInfo((90, 120), (90, 120), (1.0, 1.0), SHAPE)
RESIZED = ImageInfo((180, 171), (90, 120), (120 / 171, 0.5), SHAPE)
NMS = dict(type='nms', iou_threshold=0.6)
DELTAS = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])


def extractor(size: int) -> dict:
    layer = dict(type='RoIAlign', output_size=size, sampling_ratio=0)
    return dict(type='SingleRoIExtractor', roi_layer=layer, out_channels=CHANNELS, featmap_strides=STRIDES)


def box_head(**head) -> dict:
    return dict(
        type='Shared2FCBBoxHead',
        in_channels=CHANNELS,
        fc_out_channels=16,
        roi_feat_size=7,
        num_classes=CLASSES,
        bbox_coder=DELTAS,
        **{'reg_class_agnostic': False, **head},
    )


MASK = dict(
    mask_roi_extractor=extractor(14),
    mask_head=dict(
        type='FCNMaskHead', num_convs=1, in_channels=CHANNELS, conv_out_channels=CHANNELS, num_classes=CLASSES
    ),
)
ROI_HEADS = {
    'Faster': dict(type='StandardRoIHead', bbox_head=box_head()),
    'class agnostic': dict(type='StandardRoIHead', bbox_head=box_head(reg_class_agnostic=True)),
    'Mask': dict(type='StandardRoIHead', bbox_head=box_head(), **MASK),
    'Cascade': dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[box_head(reg_class_agnostic=True)] * 2 + [box_head()],
    ),
    'Cascade Mask': dict(
        type='CascadeRoIHead',
        num_stages=2,
        stage_loss_weights=[1, 0.5],
        bbox_head=[box_head(reg_class_agnostic=True), box_head(reg_class_agnostic=True)],
        **MASK,
    ),
}


def model_of(name: str, **rcnn):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    rpn_test = dict(nms_pre=40, max_per_img=30, nms=NMS, min_bbox_size=0)
    rcnn_test = dict(score_thr=0.2, nms=NMS, max_per_img=20, mask_thr_binary=0.5)
    with torch.no_grad():
        model = MODELS.build(
            dict(
                type='TwoStageDetector',
                backbone=dict(type='ResNet', depth=18, base_channels=4),
                rpn_head=dict(
                    type='RPNHead',
                    in_channels=CHANNELS,
                    feat_channels=CHANNELS,
                    anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=STRIDES),
                ),
                roi_head=dict(bbox_roi_extractor=extractor(7), **ROI_HEADS[name]),
                test_cfg=ConfigDict(rpn=rpn_test, rcnn={**rcnn_test, **rcnn}),
            )
        ).eval()
    for layer, module in model.named_modules():
        if layer.endswith(('fc_cls', 'fc_reg', 'conv_logits')):
            torch.nn.init.normal_(module.weight, 0, 1)
    return model


def parts_of(model) -> dict:
    """The heads as an engine would run them."""

    def run(head):
        def call(x):
            with torch.no_grad():
                results = head(torch.from_numpy(x))
            return [r.numpy() for r in (results if isinstance(results, tuple) else [results])]

        return call

    parts = {}
    for attribute in ('bbox_head', 'mask_head'):
        found = getattr(model.roi_head, attribute, None)
        if isinstance(found, torch.nn.ModuleList):
            single = len(found) == 1
            parts.update({attribute if single else f'{attribute}_{i}': run(head) for i, head in enumerate(found)})
        elif found is not None:
            parts[attribute] = run(found)
    return parts


def maps_of(seed: int, spread: float) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.normal(0, spread, (channels, SHAPE[0] // stride, SHAPE[1] // stride)).astype(np.float32)
        for channels in (CHANNELS, 3, 12)
        for stride in STRIDES
    ]


def expected(model, maps: list[np.ndarray], info: ImageInfo):
    features, scores, boxes = ([torch.from_numpy(m)[None] for m in maps[i : i + 2]] for i in (0, 2, 4))
    model.extract_feat = lambda inputs: features
    model.rpn_head.forward = lambda feats: (scores, boxes)
    sample = DetDataSample(
        metainfo=dict(img_shape=info.input_shape, scale_factor=info.scale_factor, ori_shape=info.shape)
    )
    with torch.no_grad():
        return model.predict(torch.zeros(1, 3, *SHAPE), [sample])[0].pred_instances


def found(model, maps: list[np.ndarray], info: ImageInfo):
    parts = parts_of(model)
    spec = as_json(describe_two_stage(model, {'dense': 6, **dict.fromkeys(parts, 2)}))
    DECODER(spec, 'decoder')
    return DECODERS['two_stage'](maps, info, spec, parts)


def assert_same(result, reference, masks: bool) -> None:
    assert result.labels.tolist() == reference.labels.tolist()
    assert np.abs(result.scores - reference.scores.numpy()).max(initial=0) < 1e-5
    assert np.abs(result.boxes - reference.bboxes.numpy()).max(initial=0) < 1e-4
    assert (result.masks is not None) == masks
    if masks:
        assert result.masks.shape == tuple(reference.masks.shape)
        # a box that differs in its last bit moves the border of a mask by as much
        assert (result.masks != reference.masks.numpy()).sum() <= 1e-4 * result.masks.size


@pytest.mark.parametrize('name', ROI_HEADS)
def test_boxes_and_masks(name, monkeypatch):
    keep_order_of_equals(monkeypatch)
    model = model_of(name)
    seen = set()

    @examples(max_examples=12)
    @given(st.integers(0, 10**6), st.sampled_from([PLAIN, RESIZED]), st.sampled_from([1.0, 2.0]))
    def check(seed, info, spread):
        maps = maps_of(seed, spread)
        result = found(model, maps, info)
        assert_same(result, expected(model, maps, info), 'Mask' in name)
        seen.add(len(result))

    check()
    assert max(seen) > 5


@pytest.mark.parametrize(
    'rcnn', [dict(score_thr=1.0), dict(max_per_img=-1), dict(max_per_img=3), dict(score_thr=0.0)], ids=str
)
@pytest.mark.parametrize('name', ['Faster', 'Mask', 'Cascade'])
def test_settings(name, rcnn, monkeypatch):
    keep_order_of_equals(monkeypatch)
    model = model_of(name, **rcnn)
    maps = maps_of(1, 1.0)
    assert_same(found(model, maps, RESIZED), expected(model, maps, RESIZED), name == 'Mask')


@pytest.mark.parametrize('name', ['Faster', 'Mask'])
def test_no_proposals(name):
    """A minimal size that no box has."""
    model = model_of(name)
    model.rpn_head.test_cfg['min_bbox_size'] = 500
    result = found(model, maps_of(0, 1.0), RESIZED)
    assert len(result) == 0
    assert result.masks is None or result.masks.shape == (0, *RESIZED.shape)
