"""Let torch load mmengine's own checkpoints under ``weights_only``.

torch 2.6 and newer refuse the objects that mmengine stores beside the tensors (message hub, log history).
This adds exactly those to torch's allow-list; ``weights_only`` stays on. ``getattr``, by which pickle stores the
methods of HistoryBuffer, is allowed in a restricted form only.
"""

from typing import Any, Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from ..errors import CheckpointError
from ..versions import SAFE_TORCH, version_of_torch


class ForbiddenAttributeError(CheckpointError, AttributeError):
    """A checkpoint asks for an attribute by which it could run code."""


_METHODS = ('min', 'max', 'current', 'mean')


def restricted_getattr(owner: Any, name: str) -> Callable:
    """``getattr`` for the statistics methods of ``HistoryBuffer`` and nothing else.

    Raises:
        ForbiddenAttributeError: anything else was asked for.
    """
    if owner is HistoryBuffer and isinstance(name, str) and name in _METHODS:
        return getattr(owner, name)
    raise ForbiddenAttributeError(
        f'checkpoint: it is not loaded, because a checkpoint may not read attribute {name!r} of {owner!r}'
    )


def allow_mmengine_checkpoints() -> None:
    """Add what mmengine stores to torch's allow-list; does nothing where torch has none."""
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(_allowed())


def _allowed() -> list[Any]:
    functions: list[Any] = [np.ones(1).__reduce__()[0], np.float64(1).__reduce__()[0]]  # _reconstruct and scalar
    named: list[tuple[Any, str]] = [(restricted_getattr, 'builtins.getattr')]
    for package in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        named += [(function, f'{package}.{function.__name__}') for function in functions]
    dtypes = [value for name, value in vars(getattr(np, 'dtypes', object)).items() if name.endswith('DType')]
    classes = [HistoryBuffer, np.ndarray, np.dtype, *dtypes]
    if version_of_torch() >= SAFE_TORCH:
        return [*classes, *named]
    return [*classes, *[_renamed(*pair) for pair in [*named, (_latin1, '_codecs.encode')]]]


def _latin1(text: str, encoding: str) -> bytes:
    """How pickle stores bytes; newer torch allows it by itself."""
    if encoding != 'latin1':
        raise ForbiddenAttributeError(f'checkpoint: it is not loaded, because it holds bytes as {encoding!r}')
    return text.encode('latin1')


def _renamed(function: Callable, path: str) -> Callable:
    """A function that says to have another name, for a torch whose allow-list takes no names."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, _, call.__name__ = path.rpartition('.')
    return call
