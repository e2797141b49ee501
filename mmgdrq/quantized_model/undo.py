"""Undo what was done to a model when an error ends it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..layers.walk import all_modules


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """While active, an exception puts back the modules of ``model``: classes, attributes, children, hooks.

    The values of tensors are not put back.

    >>> model = nn.Sequential(nn.ReLU())
    >>> try:
    ...     with undone_on_error(model):
    ...         model.add_module('1', nn.ReLU())
    ...         raise KeyError
    ... except KeyError:
    ...     len(model)
    1
    """
    before = [(module, module.__class__, _copied(vars(module))) for module in all_modules(model)]
    try:
        yield
    except BaseException:
        for module, cls, attributes in before:
            module.__class__ = cls
            _put_back(vars(module), attributes)
        raise


def _copied(attributes: dict) -> dict:
    """The attributes, and a copy of each dict and set in which torch holds parameters, children and hooks."""
    return {
        name: (value, value.copy() if name.startswith('_') and isinstance(value, (dict, set)) else None)
        for name, value in attributes.items()
    }


def _put_back(now: dict, attributes: dict) -> None:
    now.clear()
    for name, (value, content) in attributes.items():
        now[name] = value
        if content is not None:  # the object stays, as handles of hooks refer to it
            value.clear()
            value.update(content)
