"""Loading mmengine's own checkpoints under torch's ``weights_only``.

torch 2.6 and newer refuse the objects that mmengine stores beside the tensors (message hub, log history).
This adds exactly those to torch's allow-list; ``weights_only`` stays on. ``getattr``, by which
pickle stores HistoryBuffer's methods, is allowed in a restricted form only.
"""

from typing import Any, Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_METHODS = ('min', 'max', 'current', 'mean')


def restricted_getattr(owner: Any, name: str) -> Callable:
    """``getattr`` for the statistics methods of ``HistoryBuffer`` and nothing else.

    Raises:
        AttributeError: anything else was asked for.
    """
    if owner is HistoryBuffer and isinstance(name, str) and name in _METHODS:
        return getattr(owner, name)
    raise AttributeError(f'a checkpoint may not read attribute {name!r} of {owner!r}')


def allow_mmengine_checkpoints() -> None:
    """Add what mmengine stores to torch's allow-list; does nothing where torch has none."""
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(_allowed())


def _allowed() -> list[Any]:
    numpy_core = getattr(np, '_core', None) or np.core
    functions = numpy_core.multiarray._reconstruct, numpy_core.multiarray.scalar
    named: list[tuple[Any, str]] = [(restricted_getattr, 'builtins.getattr')]
    for package in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        named += [(function, f'{package}.{function.__name__}') for function in functions]
    dtypes = [value for name, value in vars(getattr(np, 'dtypes', object)).items() if name.endswith('DType')]
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *named]


allow_mmengine_checkpoints()
