"""Where the dense parts of an OpenMMLab model begin and end.

A part is a sub-network from tensors to tensors that an engine can run. The rest (preprocessing, anchors, NMS, RoI
extraction, metrics) stays in OpenMMLab, and the engine plugs back in at the same places.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import ExportError

IN_TORCH = 'The folded model runs in torch'
Call = Callable[[Tensor], Any]
"""What an engine does for one part: a tensor to the part's results, in their structure."""


@dataclass(frozen=True)
class Part:
    """One dense part of a model.

    Attributes:
        name: of the part and of its file.
        module: computes the part: a tensor to a flat list of tensors.
        plug: put into a model, it replaces the part there by an engine.
    """

    name: str
    module: nn.Module
    plug: Callable[[Call], None]


class Dense(nn.Module):
    """A function of a model as a module whose results are a flat list; ``tree`` is their structure."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function
        self.tree = None

    def forward(self, x: Tensor) -> list[Tensor]:
        leaves, self.tree = pytree.tree_flatten(self.function(x))
        return leaves


def parts_of(model: nn.Module) -> list[Part]:
    """The dense parts of a detector, segmentor or classifier, in the order in which they run.

    Raises:
        ExportError: the model is of a kind that has no known seam.
    """
    _check_heads(model)
    if hasattr(model, 'rpn_head') and hasattr(model, 'roi_head'):
        return [_with_rpn(model), *_roi_parts(model.roi_head)]
    for head in ('bbox_head', 'decode_head', 'head'):
        if isinstance(getattr(model, head, None), nn.Module) and hasattr(model, 'extract_feat'):
            return [_with_head(model, head)]
    raise ExportError(
        f'export: {type(model).__name__} has neither rpn_head and roi_head nor bbox_head, decode_head or head beside '
        f'extract_feat, so its dense part is not known. {IN_TORCH}'
    )


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
    dense = Dense(model, lambda x: head(model.extract_feat(x)))

    def plug(call: Call) -> None:
        model.extract_feat = lambda inputs, *args, **kwargs: call(inputs)
        head.forward = lambda feats, *args, **kwargs: feats

    return Part('dense', dense, plug)


def _with_rpn(model: nn.Module) -> Part:
    """Backbone, neck and region proposals in one; the proposals wait for the call of the head in the same thread."""
    dense = Dense(model, lambda x: _and_rpn(model, model.extract_feat(x)))

    def plug(call: Call) -> None:
        waiting = threading.local()

        def extract_feat(inputs, *args, **kwargs):
            feats, waiting.proposals = call(inputs)
            return feats

        model.extract_feat = extract_feat
        model.rpn_head.forward = lambda feats, *args, **kwargs: vars(waiting).pop('proposals')

    return Part('dense', dense, plug)


def _and_rpn(model: nn.Module, feats):
    return tuple(feats), model.rpn_head(feats)


def _roi_parts(roi_head: nn.Module) -> list[Part]:
    parts = []
    for attribute in ('bbox_head', 'mask_head'):
        found = getattr(roi_head, attribute, None)
        heads = found if isinstance(found, nn.ModuleList) else [found]
        for number, head in enumerate(heads):
            if isinstance(head, nn.Module):
                name = attribute if len(heads) == 1 else f'{attribute}_{number}'
                parts.append(_roi_part(name, head))
    return parts


def _roi_part(name: str, head: nn.Module) -> Part:
    dense = Dense(head, head.forward)

    def plug(call: Call) -> None:
        def forward(x, *args, **kwargs):
            _check_one_tensor(name, x, *args, **kwargs)
            return call(x)

        head.forward = forward

    return Part(name, dense, plug)


def _check_one_tensor(name: str, *args: Any, **kwargs: Any) -> None:
    count = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs)))
    if count != 1:
        raise ExportError(f'export: {name} is called with {count} tensors; a graph takes one. {IN_TORCH}')


@torch.no_grad()
def run_part(part: Part, x: Tensor) -> list[Tensor]:
    """The results of a part in torch.

    Raises:
        ExportError: the part needs something else than one tensor.
    """
    try:
        return part.module(x)
    except Exception as error:  # whatever its network raises
        raise ExportError(
            f'export: {part.name} of {type(part.module.model).__name__} does not run on one tensor alone, as a graph '
            f'does: {error!r}. {IN_TORCH}'
        ) from error


@torch.no_grad()
def example_inputs(parts: list[Part], run: Callable[[], object]) -> tuple[dict[str, Tensor], object]:
    """The first input of every part while ``run`` runs the whole model, and what it returns.

    Raises:
        ExportError: a part got no input, or several tensors.
    """
    seen: dict[str, Tensor] = {}
    handles = []
    for part in parts:
        inner = part.module.model
        if part.name == 'dense':
            handles.append(_watch_features(inner, part.name, seen))
        else:
            handles.append(_watch_module(inner, part.name, seen))
    try:
        result = run()
    finally:
        for undo in handles:
            undo()
    missing = [part.name for part in parts if part.name not in seen]
    if missing:
        raise ExportError(
            f'export: the sample images never reached {", ".join(missing)} (no detections?). Use more images'
        )
    return seen, result


def _watch_features(model: nn.Module, name: str, seen: dict[str, Tensor]) -> Callable[[], None]:
    original = model.extract_feat

    def watched(inputs, *args, **kwargs):
        seen.setdefault(name, inputs.detach())
        return original(inputs, *args, **kwargs)

    model.extract_feat = watched
    return lambda: delattr(model, 'extract_feat')


def _watch_module(module: nn.Module, name: str, seen: dict[str, Tensor]) -> Callable[[], None]:
    def keep(_, args, kwargs):
        _check_one_tensor(name, *args, **kwargs)
        x = args[0] if args else next(iter(kwargs.values()))
        if len(x):
            seen.setdefault(name, x.detach())

    return module.register_forward_pre_hook(keep, with_kwargs=True).remove
