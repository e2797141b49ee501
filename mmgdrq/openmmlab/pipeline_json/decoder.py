"""Describe what a model of OpenMMLab does with the outputs of its dense parts."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from ...errors import ExportError
from .methods import check_methods
from .one_stage import describe_dense
from .two_stage import describe_two_stage


def describe_decoder(model: nn.Module, graphs: Mapping[str, Any]) -> dict[str, Any]:
    """Say how the outputs of the graphs become results.

    Args:
        model: whose dense parts the graphs are.
        graphs: of the manifest.

    Raises:
        ExportError: names the class or setting that is not known.
    """
    leaves = _leaves_of(graphs)
    if hasattr(model, 'rpn_head') and hasattr(model, 'roi_head'):
        return describe_two_stage(model, leaves)
    if hasattr(model, 'bbox_head'):
        check_methods(model, 'mmdet.models.detectors.SingleStageDetector', 'predict')
        return describe_dense(model.bbox_head, leaves['dense'])
    if hasattr(model, 'decode_head'):
        return _describe_segmentor(model, leaves['dense'])
    return _describe_classifier(model, leaves['dense'])


def _leaves_of(graphs: Mapping[str, Any]) -> dict[str, int]:
    """Number of outputs of each part."""
    entries: Mapping[str, Any] = next(iter(graphs.values()), {})
    return {name: pytree.treespec_loads(entry['tree']).num_leaves for name, entry in entries.items()}


def _describe_segmentor(model: nn.Module, leaves: int) -> dict[str, Any]:
    methods = ('predict', 'inference', 'slide_inference', 'whole_inference', 'encode_decode', 'postprocess_result')
    check_methods(model, 'mmseg.models.segmentors.EncoderDecoder', *methods)
    check_methods(
        model.decode_head, 'mmseg.models.decode_heads.decode_head.BaseDecodeHead', 'predict', 'predict_by_feat'
    )
    _check_one_output(model.decode_head, leaves)
    if model.align_corners != model.decode_head.align_corners:
        raise ExportError(f'{type(model).__name__}: align_corners of the model and of its head differ')
    slides = model.test_cfg.get('mode', 'whole') == 'slide'
    window = dict(size=list(model.test_cfg['crop_size']), stride=list(model.test_cfg['stride'])) if slides else None
    threshold = model.decode_head.threshold
    return dict(
        type='segmentor',
        align_corners=bool(model.align_corners),
        threshold=0.3 if threshold is None else threshold,  # of one channel; with several it is not used
        window=window,
    )


def _describe_classifier(model: nn.Module, leaves: int) -> dict[str, Any]:
    check_methods(model, 'mmpretrain.models.classifiers.ImageClassifier', 'predict')
    check_methods(model.head, 'mmpretrain.models.heads.ClsHead', 'predict', '_get_predictions')
    _check_one_output(model.head, leaves)
    return dict(type='classifier')


def _check_one_output(head: nn.Module, leaves: int) -> None:
    if leaves != 1:
        raise ExportError(f'{type(head).__name__}: has {leaves} outputs; expected one')
