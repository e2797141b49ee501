"""The dense parts of the models of OpenMMLab: with two stages, or with one head behind ``extract_feat``."""

import threading
from collections.abc import Callable
from typing import Optional

from torch import nn

from ...errors import ExportError
from ...quantized_model.dense_parts import IN_TORCH, Call, Dense, Part, See, module_part, register_dense_parts

HEADS = ('bbox_head', 'decode_head', 'head')
"""Attributes under which models with one stage have their head."""


def _has_two_stages(model: nn.Module) -> bool:
    return hasattr(model, 'rpn_head') and hasattr(model, 'roi_head')


def _parts_of_two_stages(model: nn.Module) -> list[Part]:
    _check_heads(model)
    return [_with_rpn(model), *_roi_parts(model.roi_head)]


def _has_one_head(model: nn.Module) -> bool:
    return _head_of(model) is not None and hasattr(model, 'extract_feat')


def _head_of(model: nn.Module) -> Optional[str]:
    return next((name for name in HEADS if isinstance(getattr(model, name, None), nn.Module)), None)


def _part_of_one_head(model: nn.Module) -> list[Part]:
    _check_heads(model)
    head = _head_of(model)
    assert head is not None, 'as _has_one_head says'
    return [_with_head(model, head)]


def _check_heads(model: nn.Module) -> None:
    """Refuse what looks like a known kind, but goes other ways."""
    kind = type(model).__name__
    if isinstance(getattr(model, 'decode_head', None), nn.ModuleList):
        raise ExportError(f'export: {kind} has several decode heads, one behind the other; expected one. {IN_TORCH}')
    heads = [name for name in ('bbox_head', 'mask_head') if isinstance(getattr(model, name, None), nn.Module)]
    if len(heads) == 2:
        raise ExportError(
            f'export: {kind} has a mask_head beside its bbox_head, which gets more than tensors. {IN_TORCH}'
        )
    if getattr(getattr(model, 'roi_head', None), 'mask_info_flow', False):
        raise ExportError(
            f'export: each mask_head of {kind} gets the features of the one before it as well; a graph takes one '
            f'tensor. {IN_TORCH}. mask_info_flow=False of the roi_head trains a model without them'
        )


def _with_head(model: nn.Module, attribute: str) -> Part:
    """Backbone, neck and head in one; the head then passes the engine's results on."""
    head = getattr(model, attribute)

    def replace_by(call: Call) -> None:
        model.extract_feat = lambda inputs, *args, **kwargs: call(inputs)  # type: ignore[assignment]
        head.forward = lambda feats, *args, **kwargs: feats

    return Part('dense', Dense(model, lambda x: head(model.extract_feat(x))), replace_by, _watching(model))


def _with_rpn(model: nn.Module) -> Part:
    """Backbone, neck and region proposals in one; the proposals wait for the call of the head in the same thread."""

    def replace_by(call: Call) -> None:
        waiting = threading.local()

        def extract_feat(inputs, *args, **kwargs):
            feats, waiting.proposals = call(inputs)
            return feats

        model.extract_feat = extract_feat  # type: ignore[assignment]
        model.rpn_head.forward = lambda feats, *args, **kwargs: vars(waiting).pop('proposals')

    return Part('dense', Dense(model, lambda x: _and_rpn(model, model.extract_feat(x))), replace_by, _watching(model))


def _and_rpn(model: nn.Module, feats):
    return tuple(feats), model.rpn_head(feats)


def _watching(model: nn.Module) -> Callable[[See], Callable[[], None]]:
    """What watches the inputs of ``extract_feat``, where the part begins."""

    def watch(see: See) -> Callable[[], None]:
        original = model.extract_feat

        def watched(inputs, *args, **kwargs):
            see(inputs)
            return original(inputs, *args, **kwargs)

        model.extract_feat = watched  # type: ignore[assignment]
        return lambda: delattr(model, 'extract_feat')

    return watch


def _roi_parts(roi_head: nn.Module) -> list[Part]:
    parts = []
    for attribute in ('bbox_head', 'mask_head'):
        found = getattr(roi_head, attribute, None)
        heads = found if isinstance(found, nn.ModuleList) else [found]
        for number, head in enumerate(heads):
            if isinstance(head, nn.Module):
                parts.append(module_part(attribute if len(heads) == 1 else f'{attribute}_{number}', head))
    return parts


register_dense_parts(_has_one_head, _part_of_one_head)
register_dense_parts(_has_two_stages, _parts_of_two_stages)
