"""Check the types that a config of a stranger names, before anything of it is built.

mmengine takes a ``type`` that no registry knows for a path to import from, so that ``type='os.system'`` would run a
command; mmcv evaluates the type of ``nms`` as Python. So every name must be known before.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry

from ...errors import CheckpointError
from ..config_parts import TYPES

UNREGISTERED = {
    'nms': ('nms', 'soft_nms', 'nms_match', 'nms_quadri', 'nms_rotated'),
    'roi_layer': ('RoIAlign', 'RoIAlignRotated', 'RoIPool', 'SimpleRoIAlign'),
    'trans': ('conv', 'interpolation_conv', 'last_conv'),  # of FPG, a neck of mmdet
}
"""Ending of a part's key -> types that mmcv and mmdet look up by themselves there, and that are in no registry."""


def check_types(part: Any, scope: str, file: Path) -> None:
    """Check that all types in a part of a config are registered, and import no module but those that register them.

    A type may also be the path of a registered class, as in configs that were written with lazy imports.

    Args:
        part: dicts and lists of a config, however deep.
        scope: its default scope.
        file: the config, named in errors.

    Raises:
        CheckpointError: names the type, or a scope that is no package of OpenMMLab and was not imported.
    """
    names = list(_names_in(part))
    scopes = [scope, *_scopes_in(part)]
    for named in scopes:
        _check_scope(named, file)
    unknown = _unknown(names)
    prefixes = {*scopes, *(name.partition('.')[0] for name in names)}
    for registry in _registries_of(prefixes):
        if not unknown:
            return
        with suppress(ImportError):  # building says so, where it needs what cannot be imported
            registry.import_from_location()
        unknown = _unknown(unknown)
    if unknown:
        raise CheckpointError(
            f'{file}: type {unknown[0]!r} is not a registered class of OpenMMLab or of a module that was imported, so '
            'it is not built. Import the module that registers it'
        )


def _check_scope(scope: Any, file: Path) -> None:
    """A scope is a package that mmengine imports; one of a stranger could lie in the current folder."""
    if not _is_trusted(scope):
        raise CheckpointError(f'{file}: default_scope {scope!r} is no package of OpenMMLab. Import it before')


def _is_trusted(package: Any) -> bool:
    return isinstance(package, str) and (package in MODULE2PACKAGE or package in sys.modules)


def _names_in(part: Any, parent: str = '') -> Iterator[str]:
    for key, value in _items(part):
        if key in TYPES and isinstance(value, str):
            if not any(parent.endswith(part) and value in known for part, known in UNREGISTERED.items()):
                yield value
        else:
            yield from _names_in(value, parent if key is None else str(key))


def _scopes_in(part: Any) -> Iterator[Any]:
    for key, value in _items(part):
        if key == '_scope_' and value is not None:
            yield value
        else:
            yield from _scopes_in(value)


def _items(part: Any) -> Iterator[tuple[Any, Any]]:
    """Keys and values of a dict; the elements of a list, with None for a key."""
    if isinstance(part, dict):
        yield from part.items()
    elif isinstance(part, (list, tuple, set)):
        yield from ((None, element) for element in part)


def _unknown(names: list[str]) -> list[str]:
    known = [item for registry in _registries() for item in registry.module_dict.items()]
    registered = {name for name, _ in known}
    scoped = {f'{registry.scope}.{name}' for registry in _registries() for name in registry.module_dict}
    objects = {id(built) for _, built in known}
    return [name for name in names if name not in registered | scoped and id(_at_path(name)) not in objects]


def _at_path(name: str) -> Any:
    """What lies at a path in a module that is imported already."""
    module, _, attribute = name.rpartition('.')
    return getattr(sys.modules.get(module), attribute, None)


def _registries_of(scopes: set[Any]) -> list[Registry]:
    for scope in filter(_is_trusted, scopes):
        with suppress(ImportError):
            import_module(f'{scope}.registry')
    return [registry for registry in _registries() if registry.scope in scopes]


def _registries() -> Iterator[Registry]:
    """All that mmengine's lead to, and those that packages of OpenMMLab have beside them."""
    loaded = [sys.modules[f'{scope}.registry'] for scope in MODULE2PACKAGE if f'{scope}.registry' in sys.modules]
    found = {id(value): value for module in [mmengine_registry, *loaded] for value in vars(module).values()}
    waiting = [value for value in found.values() if isinstance(value, Registry)]
    while waiting:
        registry = waiting.pop()
        yield registry
        waiting += registry.children.values()
