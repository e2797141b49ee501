"""Find the dense parts of a model: networks from a tensor to tensors, which an engine can run.

The rest (preprocessing, anchors, NMS, RoI extraction, metrics) stays as it is, and an engine replaces the parts where
they are. Which parts a model has depends on its kind; :func:`register_dense_parts` adds a kind.
"""

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
See = Callable[[Tensor], None]


@dataclass(frozen=True)
class Part:
    """One dense part of a model.

    Attributes:
        name: of the part and of its file.
        module: computes the part: a tensor to a flat list of tensors.
        replace_by: replaces the part, in its model, by a function of an engine.
        watch: calls a function with every input of the part from now on, and returns what ends that.
    """

    name: str
    module: 'Dense'
    replace_by: Callable[[Call], None]
    watch: Callable[[See], Callable[[], None]]


class Dense(nn.Module):
    """A function of a model as a module whose results are a flat list; ``tree`` is their structure."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function
        self.tree: Any = None

    def forward(self, x: Tensor) -> list[Tensor]:
        leaves, self.tree = pytree.tree_flatten(self.function(x))
        return leaves


@dataclass(frozen=True)
class Kind:
    """A kind of model whose dense parts are known.

    Attributes:
        matches: whether a model is of this kind.
        parts: the dense parts of such a model, in the order in which they run; raises ExportError for a model that
            looks like this kind, but goes other ways.
    """

    matches: Callable[[nn.Module], bool]
    parts: Callable[[nn.Module], list[Part]]


_KINDS: list[Kind] = []


def register_dense_parts(matches: Callable[[nn.Module], bool], parts: Callable[[nn.Module], list[Part]]) -> Kind:
    """Add a kind of model; the one that was added last is asked first.

    Args:
        matches: whether a model is of this kind.
        parts: the dense parts of such a model, in the order in which they run.
    """
    kind = Kind(matches, parts)
    _KINDS.insert(0, kind)
    return kind


def parts_of(model: nn.Module) -> list[Part]:
    """The dense parts of a model, in the order in which they run.

    Raises:
        ExportError: the model is of no kind whose dense parts are known, or goes other ways than its kind.
    """
    kind = next((kind for kind in _KINDS if kind.matches(model)), None)
    if kind is None:
        raise ExportError(
            f'export: {type(model).__name__} has neither rpn_head and roi_head nor bbox_head, decode_head or head '
            f'beside extract_feat, so its dense part is not known. {IN_TORCH}; register_dense_parts of '
            'mmgdrq.quantized_model.dense_parts adds a kind of model'
        )
    return kind.parts(model)


def module_part(name: str, module: nn.Module) -> Part:
    """A module of the model that is called with one tensor, as a part."""

    def replace_by(call: Call) -> None:
        def forward(x, *args, **kwargs):
            _check_one_tensor(name, x, *args, **kwargs)
            return call(x)

        module.forward = forward

    def watch(see: See) -> Callable[[], None]:
        def keep(_, args, kwargs):
            _check_one_tensor(name, *args, **kwargs)
            see(args[0] if args else next(iter(kwargs.values())))

        return module.register_forward_pre_hook(keep, with_kwargs=True).remove

    return Part(name, Dense(module, module.forward), replace_by, watch)


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
    ends = [part.watch(_keep_first(part.name, seen)) for part in parts]
    try:
        result = run()
    finally:
        for end in ends:
            end()
    missing = [part.name for part in parts if part.name not in seen]
    if missing:
        raise ExportError(
            f'export: the sample images never reached {", ".join(missing)} (no detections?). Use more images'
        )
    return seen, result


def _keep_first(name: str, seen: dict[str, Tensor]) -> See:
    def see(x: Tensor) -> None:
        if len(x):
            seen.setdefault(name, x.detach())

    return see
