"""Describe two-stage detectors: region proposals, RoI extractors, box and mask heads."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...errors import ExportError
from .methods import check_methods, has_methods
from .one_stage import DENSE, describe_candidates, describe_coder, describe_nms, describe_priors

ROI = 'mmdet.models.roi_heads'


def describe_two_stage(model: nn.Module, leaves: Mapping[str, int]) -> dict[str, Any]:
    """Say how the outputs of the graphs of a two-stage detector become results.

    Args:
        model: with ``rpn_head`` and ``roi_head``.
        leaves: number of outputs of each graph.

    Raises:
        ExportError: names the class or setting that is not known.
    """
    check_methods(model, 'mmdet.models.detectors.TwoStageDetector', 'predict')
    roi_head = model.roi_head
    cascade = has_methods(roi_head, f'{ROI}.CascadeRoIHead', 'predict_bbox', '_refine_roi', '_bbox_forward')
    if not cascade:
        check_methods(roi_head, f'{ROI}.StandardRoIHead', 'predict_bbox', '_bbox_forward')
    check_methods(roi_head, f'{ROI}.base_roi_head.BaseRoIHead', 'predict')
    if roi_head.with_shared_head:
        raise ExportError(f'{type(roi_head).__name__}: shared_head is not known')
    rpn = _describe_rpn(model.rpn_head)
    if leaves['dense'] != 3 * len(rpn['priors']['strides']):
        raise ExportError(f'{type(model.rpn_head).__name__}: proposals do not come from all feature maps')
    cfg = roi_head.test_cfg
    return dict(
        type='two_stage',
        rpn=rpn,
        stages=_describe_stages(roi_head, cascade, leaves),
        score_thr=cfg['score_thr'],
        nms=describe_nms(cfg['nms']),
        max_per_image=cfg['max_per_img'],
        mask=_describe_mask(roi_head, cascade) if roi_head.with_mask else None,
    )


def _describe_rpn(head: nn.Module) -> dict[str, Any]:
    base = f'{DENSE}.base_dense_head.BaseDenseHead'
    check_methods(head, base, 'predict', 'predict_by_feat')
    check_methods(head, f'{DENSE}.rpn_head.RPNHead', '_predict_by_feat_single', '_bbox_post_process')
    return describe_candidates(head, describe_priors(head.prior_generator), describe_coder(head.bbox_coder))


def _describe_stages(roi_head: nn.Module, cascade: bool, leaves: Mapping[str, int]) -> list[dict[str, Any]]:
    heads, extractors = _listed(roi_head.bbox_head), _listed(roi_head.bbox_roi_extractor)
    names = [f'bbox_head_{i}' if len(heads) > 1 else 'bbox_head' for i in range(len(heads))]
    if cascade and roi_head.num_stages != len(heads):
        raise ExportError(f'{type(roi_head).__name__}: num_stages is not the number of its heads')
    return [
        _describe_stage(head, extractor, name, leaves[name]) for head, extractor, name in zip(heads, extractors, names)
    ]


def _describe_stage(head: nn.Module, extractor: nn.Module, name: str, leaves: int) -> dict[str, Any]:
    known = f'{ROI}.bbox_heads.BBoxHead'
    check_methods(head, known, 'predict_by_feat', '_predict_by_feat_single', 'regress_by_class')
    if leaves != 2 or head.custom_cls_channels or head.custom_activation:
        raise ExportError(f'{type(head).__name__}: outputs other than class scores and deltas are not known')
    coder = describe_coder(head.bbox_coder)
    if coder['type'] != 'deltas':
        raise ExportError(f'{type(head).__name__}: coder {type(head.bbox_coder).__name__} is not known')
    agnostic = bool(head.reg_class_agnostic)
    return dict(part=name, coder=coder, class_agnostic=agnostic, roi=_describe_extractor(extractor))


def _describe_mask(roi_head: nn.Module, cascade: bool) -> dict[str, Any]:
    owner = f'{ROI}.CascadeRoIHead' if cascade else f'{ROI}.StandardRoIHead'
    check_methods(roi_head, owner, 'predict_mask', '_mask_forward')
    heads, extractors = _listed(roi_head.mask_head), _listed(roi_head.mask_roi_extractor)
    for head in heads:
        check_methods(head, f'{ROI}.mask_heads.FCNMaskHead', 'predict_by_feat', '_predict_by_feat_single')
    rois = [_describe_extractor(extractor) for extractor in extractors]
    if any(roi != rois[0] for roi in rois) or len({bool(head.class_agnostic) for head in heads}) > 1:
        raise ExportError(f'{type(roi_head).__name__}: mask heads that differ are not known')
    threshold = roi_head.test_cfg['mask_thr_binary']
    if threshold < 0:
        raise ExportError(f'{type(roi_head).__name__}: mask_thr_binary={threshold} (soft masks) is not known')
    return dict(
        parts=[f'mask_head_{i}' if len(heads) > 1 else 'mask_head' for i in range(len(heads))],
        roi=rois[0],
        threshold=threshold,
        class_agnostic=bool(heads[0].class_agnostic),
    )


def _describe_extractor(extractor: nn.Module) -> dict[str, Any]:
    check_methods(extractor, f'{ROI}.roi_extractors.SingleRoIExtractor', 'forward', 'map_roi_levels')
    layer = extractor.roi_layers[0]
    check_methods(layer, 'mmcv.ops.RoIAlign', 'forward')
    if layer.pool_mode != 'avg' or layer.use_torchvision:
        raise ExportError(f'RoIAlign: pool_mode={layer.pool_mode!r} or use_torchvision is not known')
    return dict(
        strides=list(map(float, extractor.featmap_strides)),
        size=list(layer.output_size),
        sampling_ratio=layer.sampling_ratio,
        aligned=bool(layer.aligned),
        finest_scale=extractor.finest_scale,
    )


def _listed(part: Any) -> list[nn.Module]:
    return list(part) if isinstance(part, nn.ModuleList) else [part]
