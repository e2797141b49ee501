"""Check that a model gives its own results where a function replaces its dense parts, as an engine will."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...errors import ExportError
from ...quantized_model.dense_parts import IN_TORCH, Call, Part, parts_of, run_part


@torch.no_grad()
def check_replaced_parts(
    model: nn.Module, parts: list[Part], run: Callable[[nn.Module], object], expected: object
) -> None:
    """Run a copy of a model in which functions that run torch replace the parts.

    Args:
        model: a folded model.
        parts: result of :func:`~mmgdrq.quantized_model.dense_parts.parts_of` for it.
        run: runs the model it is given on sample images.
        expected: what it returned for ``model``; tensors in it are compared.

    Raises:
        ExportError: the model fails or has other results.
    """
    kind, replaced = type(model).__name__, copy.deepcopy(model)
    for part, other in zip(parts, parts_of(replaced)):
        other.replace_by(_in_torch(part))
    try:
        found = run(replaced)
    except ExportError:
        raise
    except Exception as error:  # whatever a model raises that needs more of a part than its results
        raise ExportError(
            f'export: {kind} does not run with an engine in the place of {_names(parts)}: {error!r}. {IN_TORCH}'
        ) from error
    if not _are_equal(list(_arrays(expected)), list(_arrays(found))):
        raise ExportError(
            f'export: {kind} has other results with an engine in the place of {_names(parts)}, even if that computes '
            f'what torch does, so it gives a part more than one tensor or calls it otherwise. {IN_TORCH}'
        )


def _names(parts: list[Part]) -> str:
    return ', '.join(part.name for part in parts)


def _in_torch(part: Part) -> Call:
    def call(x: Tensor) -> Any:
        return pytree.tree_unflatten(run_part(part, x), part.module.tree)

    return call


def _arrays(value: object) -> Iterator[Tensor]:
    """The tensors and arrays in tensors, dicts, sequences and data samples."""
    if isinstance(value, (Tensor, np.ndarray)):
        yield torch.as_tensor(value)
    elif hasattr(value, 'items'):
        yield from _arrays([item for _, item in value.items()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _arrays(item)


def _are_equal(expected: list[Tensor], found: list[Tensor]) -> bool:
    return len(expected) == len(found) and all(
        ours.shape == theirs.shape and torch.allclose(ours.double(), theirs.double(), rtol=1e-4, atol=1e-6)
        for ours, theirs in zip(expected, found)
    )
