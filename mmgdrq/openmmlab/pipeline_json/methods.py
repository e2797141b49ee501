"""Recognize classes of OpenMMLab by their methods.

A class that overrides what a decoder of :mod:`mmgdrq_runtime` stands for is another one, whatever it is derived from.
"""

import importlib
from typing import Any

from ...errors import ExportError


def has_methods(part: Any, known: str, *methods: str) -> bool:
    """Whether an object has methods of a known class and no other ones in their place.

    Args:
        part: the object.
        known: dotted name of the class.
        *methods: names.
    """
    module, _, name = known.rpartition('.')
    try:
        base = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return isinstance(part, base) and all(getattr(type(part), m) is getattr(base, m) for m in methods)


def check_methods(part: Any, known: str, *methods: str) -> None:
    """Refuse an object that has not the methods of a known class.

    Raises:
        ExportError: names the object's class.
    """
    if not has_methods(part, known, *methods):
        raise ExportError(
            f'{type(part).__name__}: does not predict as {known.rpartition(".")[2]} does ({", ".join(methods)}), '
            'so its decoder is not known'
        )
