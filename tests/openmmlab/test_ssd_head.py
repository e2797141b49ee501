"""Repairs of the zoos' heads."""

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

from mmgdrq.registry import MODELS
from tests.integration.test_zoo import detection

ANCHORS = dict(
    type='SSDAnchorGenerator',
    strides=[32],
    ratios=[[2]],
    min_sizes=[16],
    max_sizes=[32],
    input_size=64,
    scale_major=False,
)


def test_ssd_predicts_what_mmdets_own_head_cannot():
    init_default_scope('mmdet')
    config = dict(num_classes=3, in_channels=(8,), anchor_generator=ANCHORS)
    config['test_cfg'] = ConfigDict(nms_pre=10, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)
    head = MODELS.build(dict(type='mmgdrq.SSDHead', **config))
    own = MODELS.build(dict(type='SSDHead', **config))
    assert type(head) is type(own)
    own.load_state_dict(head.state_dict())
    features = (torch.randn(1, 8, 2, 2),)
    samples = [detection()]
    (found,) = head.predict(features, samples)
    scores, labels = head(features)[0][0].permute(0, 2, 3, 1).reshape(-1, 4).softmax(-1)[:, :3].max(-1)
    best = scores.argmax()
    assert torch.isclose(found.scores.max(), scores[best])
    assert found.labels[found.scores.argmax()] == labels[best]
