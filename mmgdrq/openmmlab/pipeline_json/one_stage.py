"""Describe heads of one-stage detectors, and what region proposals share with them."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...errors import ExportError
from .methods import check_methods, has_methods

DENSE = 'mmdet.models.dense_heads'


def describe_dense(head: nn.Module, leaves: int) -> dict[str, Any]:
    """Say how the outputs of a one-stage detector become boxes.

    Args:
        head: its ``bbox_head``.
        leaves: number of outputs of the head, over all levels.
    """
    predict = ('predict', 'predict_by_feat')
    post = ('_bbox_post_process',)
    base = f'{DENSE}.base_dense_head.BaseDenseHead'
    if has_methods(head, f'{DENSE}.yolox_head.YOLOXHead', *predict, *post, '_bbox_decode'):
        return _describe_yolox(head)
    if has_methods(head, f'{DENSE}.yolo_head.YOLOV3Head', *predict, *post):
        return _describe_yolov3(head)
    check_methods(head, base, *predict, *post)
    if has_methods(head, f'{DENSE}.gfl_head.GFLHead', '_predict_by_feat_single', 'anchor_center'):
        coder = dict(type='integral', size=4 * (head.reg_max + 1), clip=bool(head.bbox_coder.clip_border))
        check_methods(head.bbox_coder, _CODERS['distances'], 'decode')
    else:
        check_methods(head, base, '_predict_by_feat_single')
        coder = describe_coder(head.bbox_coder)
    priors = describe_priors(head.prior_generator)
    return dict(
        type='dense',
        factors=leaves == 3 * len(priors['strides']),
        score_thr=head.test_cfg.get('score_thr', 0),
        **describe_candidates(head, priors, coder),
    )


def describe_candidates(head: nn.Module, priors: dict[str, Any], coder: dict[str, Any]) -> dict[str, Any]:
    """What dense heads and region proposals have in common."""
    if getattr(getattr(head, 'loss_cls', None), 'custom_cls_channels', False):
        raise ExportError(f'{type(head).__name__}: loss_cls with an activation of its own is not known')
    return dict(
        outputs=head.cls_out_channels,
        activation='sigmoid' if head.use_sigmoid_cls else 'softmax',
        priors=priors,
        coder=coder,
        nms_pre=head.test_cfg.get('nms_pre', -1),
        **describe_selection(head.test_cfg),
    )


def describe_selection(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Which of the decoded boxes stay."""
    return dict(
        min_box_size=cfg.get('min_bbox_size', -1), nms=describe_nms(cfg['nms']), max_per_image=cfg['max_per_img']
    )


def describe_nms(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``mmcv.ops.batched_nms``.

    Raises:
        ExportError: another kind of suppression, or an option that is not known.
    """
    cfg = dict(cfg)
    kind, threshold = cfg.pop('type', 'nms'), cfg.pop('iou_threshold', cfg.pop('iou_thr', None))
    described = dict(
        iou_threshold=threshold,
        class_agnostic=bool(cfg.pop('class_agnostic', False)),
        split_thr=cfg.pop('split_thr', 10000),
        max_num=cfg.pop('max_num', -1),
    )
    if kind != 'nms' or cfg:
        raise ExportError(f'nms of type {kind!r} with {", ".join(cfg) or "no further options"}: is not known')
    return described


_TASKS = 'mmdet.models.task_modules'
_CODERS = {
    'deltas': f'{_TASKS}.coders.delta_xywh_bbox_coder.DeltaXYWHBBoxCoder',
    'distances': f'{_TASKS}.coders.distance_point_bbox_coder.DistancePointBBoxCoder',
    'yolo': f'{_TASKS}.coders.yolo_bbox_coder.YOLOBBoxCoder',
}
MAX_RATIO = abs(math.log(16 / 1000))
"""Limit of the logarithms of scales; a default of mmdet's decode, which no config sets."""


def describe_coder(coder: Any) -> dict[str, Any]:
    """How predictions become boxes."""
    if has_methods(coder, _CODERS['distances'], 'decode'):
        return dict(type='distances', size=4, clip=bool(coder.clip_border))
    check_methods(coder, _CODERS['deltas'], 'decode')
    return dict(
        type='deltas',
        size=4,
        means=list(coder.means),
        stds=list(coder.stds),
        max_ratio=MAX_RATIO,
        center_clamp=coder.ctr_clamp if coder.add_ctr_clamp else None,
        clip=bool(coder.clip_border),
    )


def describe_priors(generator: Any) -> dict[str, Any]:
    """Where boxes are predicted from."""
    strides = [list(map(float, stride)) for stride in generator.strides]
    grid = ('grid_priors', 'single_level_grid_priors')
    if has_methods(generator, f'{_TASKS}.prior_generators.point_generator.MlvlPointGenerator', *grid):
        return dict(type='points', offset=generator.offset, strides=strides)
    check_methods(generator, f'{_TASKS}.prior_generators.anchor_generator.AnchorGenerator', *grid)
    return dict(type='anchors', base=[anchors.tolist() for anchors in generator.base_anchors], strides=strides)


def _describe_yolox(head: nn.Module) -> dict[str, Any]:
    return dict(
        type='yolox',
        outputs=head.cls_out_channels,
        priors=describe_priors(head.prior_generator),
        score_thr=head.test_cfg['score_thr'],
        nms=describe_nms(head.test_cfg['nms']),
    )


def _describe_yolov3(head: nn.Module) -> dict[str, Any]:
    check_methods(head.bbox_coder, _CODERS['yolo'], 'decode')
    cfg = head.test_cfg
    priors = describe_priors(head.prior_generator)
    if [stride for stride, _ in priors['strides']] != list(map(float, head.featmap_strides)):
        raise ExportError(f'{type(head).__name__}: strides of its anchors and of its maps differ')
    return dict(
        type='yolov3',
        outputs=head.num_classes,
        priors=priors,
        conf_thr=cfg.get('conf_thr', -1),
        score_thr=cfg.get('score_thr', 0),
        nms_pre=cfg.get('nms_pre', -1),
        **describe_selection(cfg),
    )
