"""The exceptions of mmgdrq.

Every message says what was wrong, where (layer or config key), what was expected and what to do.
"""

import difflib
from collections.abc import Iterable
from typing import Optional

from mmgdrq_runtime.errors import CheckpointError, ExportError, InputError, MMGDRQError

__all__ = [
    'CheckpointError',
    'ConfigError',
    'ExportError',
    'FoldError',
    'InputError',
    'MMGDRQError',
    'QuantizationError',
    'nearest',
    'unknown_key',
]


class ConfigError(MMGDRQError, ValueError):
    """A quantization config is wrong: unknown key, value out of range, rule without a match."""


class QuantizationError(MMGDRQError, RuntimeError):
    """A quantized model was used in a way that cannot give a right result."""


class FoldError(MMGDRQError, RuntimeError):
    """A model cannot be folded, or the folded model does not agree with the quantized one."""


def nearest(name: str, valid: Iterable[str]) -> Optional[str]:
    """Return the valid name that is closest to ``name``, or None if nothing is close.

    >>> nearest('bitz', ['bits', 'group_size'])
    'bits'
    """
    matches = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_key(where: str, key: str, valid: Iterable[str]) -> ConfigError:
    """Build the error for an unknown config key, naming the nearest valid one.

    >>> print(unknown_key('weight', 'bit', ['bits', 'k']))
    weight: unknown key 'bit'. Did you mean 'bits'? Valid keys: bits, k
    """
    valid = list(valid)
    guess = nearest(key, valid)
    hint = f" Did you mean '{guess}'?" if guess else ''
    return ConfigError(f"{where}: unknown key '{key}'.{hint} Valid keys: {', '.join(valid)}")
