"""Find the prediction layers of heads that are known by the name of their class.

:func:`register_prediction_layers` fills the table: ``mmgdrq.openmmlab.heads`` with the heads of OpenMMLab,
:mod:`.heads_of_others` with those of other libraries, and anyone with heads of their own. Layers of all other heads
are judged by their names, see :mod:`.prediction_layers`.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Optional

from torch import nn

from ..errors import ConfigError
from ..layers.walk import all_modules
from .first_layers import Layers

_HEADS: dict[str, tuple[str, ...]] = {}
"""Name of a class, or package and class (``'torchvision.RPNHead'``) -> paths of its prediction layers."""


def register_prediction_layers(head: str, layers: Sequence[str]) -> None:
    """Say which layers of a head predict; they get 8 bits unless a rule says otherwise.

    It holds for the class and for its subclasses that have no entry of their own. An entry of which nothing is found
    in a head decides nothing there.

    Args:
        head: name of the class, such as ``'MyHead'``; with its package (``'mine.MyHead'``) where others share the name.
        layers: paths of its prediction layers within the head, such as ``'fc_cls'``. A part of a path may be a glob
            (``'cls_preds.*'``); the path of a module that holds layers stands for the last of them.

    Raises:
        ConfigError: not a name and a list of paths.

    >>> register_prediction_layers('MyHead', ['fc_cls', 'towers.*'])
    """
    if not isinstance(head, str) or not head:
        raise ConfigError(f"register_prediction_layers: head={head!r}; expected the name of a class, such as 'MyHead'")
    if isinstance(layers, str) or not layers or not all(isinstance(path, str) and path for path in layers):
        raise ConfigError(
            f"register_prediction_layers: layers={layers!r} of {head}; expected a list of paths, such as ['fc_cls']"
        )
    _HEADS[head] = tuple(layers)


def register_heads(heads: Mapping[str, Sequence[str]]) -> None:
    """Do so for many heads."""
    for head, layers in heads.items():
        register_prediction_layers(head, layers)


def known_prediction_layers(model: nn.Module, layers: Layers) -> tuple[dict[str, str], set[str]]:
    """What the table says of the heads in a model.

    Args:
        model: the model.
        layers: qualified name -> layer.

    Returns:
        Name of a prediction layer -> entry that names it; and the names of all layers in the heads that an entry
        decides, which nothing else has to judge.
    """
    names = {id(layer): name for name, layer in layers.items()}
    found: dict[str, str] = {}
    decided: set[str] = set()
    for head in all_modules(model):
        entry = _entry_of(type(head))
        if entry is None:
            continue
        predicting = [names[id(layer)] for layer in _layers_at(head, _HEADS[entry], names)]
        found.update(dict.fromkeys(predicting, entry))
        if predicting:
            decided.update(names[id(layer)] for layer in all_modules(head) if id(layer) in names)
    return found, decided


def _entry_of(head: type) -> Optional[str]:
    for base in head.__mro__:
        for name in (f'{base.__module__.partition(".")[0]}.{base.__name__}', base.__name__):
            if name in _HEADS:
                return name
    return None


def _layers_at(head: nn.Module, paths: Sequence[str], names: Mapping[int, str]) -> Iterator[nn.Module]:
    """The layers at paths within a head: the layer itself, or the last one below the module there."""
    for name, module in nn.Module.named_modules(head, remove_duplicate=False):
        if any(_matches(name, path) for path in paths):
            layers = [layer for layer in all_modules(module) if id(layer) in names]
            yield from layers[-1:]


def _matches(name: str, path: str) -> bool:
    """Whether a glob matches part by part.

    >>> _matches('cls_preds.0', 'cls_preds.*'), _matches('cls_preds.0.conv', 'cls_preds.*')
    (True, False)
    """
    parts, globs = name.split('.'), path.split('.')
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))
