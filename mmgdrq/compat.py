"""Loading mmengine's own checkpoints under torch's ``weights_only``.

torch 2.6 and newer refuse the objects that mmengine stores beside the tensors (message hub, log history).
This adds exactly those to torch's allow-list; ``weights_only`` stays on. ``getattr``, by which
pickle stores HistoryBuffer's methods, is allowed in a restricted form only.
"""

import os
import sys
import warnings
from typing import Any, Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from .errors import CheckpointError


class ForbiddenAttributeError(CheckpointError, AttributeError):
    """A checkpoint asks for an attribute by which it could run code."""


_METHODS = ('min', 'max', 'current', 'mean')


SAFE_TORCH = (2, 6)
"""From here on torch loads with ``weights_only`` unless told otherwise."""

TESTED = {'torch': ((2, 4), (2, 14)), 'python': ((3, 9), (3, 12))}
"""Oldest and newest version that the tests were run with; see docs/reliability.md."""


def check_versions(torch_version: str = torch.__version__, python: tuple = sys.version_info[:2]) -> None:
    """Warn where a version lies outside of what is tested, and where torch unpickles checkpoints as they are.

    Raises:
        ImportError: torch is too old for the model to be right.
    """
    found = {'torch': _torch_version(torch_version), 'python': tuple(python)}
    for name, version in found.items():
        oldest, newest = TESTED[name]
        text = f'mmgdrq: {name} {_text(version)} was not tested; tested are {_text(oldest)} to {_text(newest)}'
        if name == 'torch' and version < oldest:
            raise ImportError(f'{text}. Folding would be wrong with it: install torch {_text(oldest)} or newer')
        if not oldest <= version <= newest:
            warnings.warn(text, stacklevel=3)
    if found['torch'] < SAFE_TORCH:
        warnings.warn(
            f'mmgdrq: torch before {_text(SAFE_TORCH)} runs what a checkpoint holds when OpenMMLab loads it. Load '
            'only checkpoints that you trust, or update torch. (The tools of mmgdrq load nothing but weights, as far '
            'as that torch is able to.)',
            stacklevel=3,
        )


def _torch_version(text: str = torch.__version__) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split('.')[:2])


def _text(version: tuple) -> str:
    return '.'.join(map(str, version))


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
    functions = np.ones(1).__reduce__()[0], np.float64(1).__reduce__()[0]  # _reconstruct and scalar
    named: list[tuple[Any, str]] = [(restricted_getattr, 'builtins.getattr')]
    for package in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        named += [(function, f'{package}.{function.__name__}') for function in functions]
    dtypes = [value for name, value in vars(getattr(np, 'dtypes', object)).items() if name.endswith('DType')]
    classes = [HistoryBuffer, np.ndarray, np.dtype, *dtypes]
    if _torch_version() >= SAFE_TORCH:
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


def load_weights_only() -> None:
    """Let ``torch.load`` read no more than tensors and the allow-list in this process, with an older torch too.

    Newer ones do it unless told otherwise. What is set in the environment already stays.
    """
    if _torch_version() < SAFE_TORCH:
        os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')


check_versions()
allow_mmengine_checkpoints()
