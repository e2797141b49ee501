"""Read the config text of a deployed directory, and build what it names, without running it as code."""

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from ..errors import CheckpointError


def parse_config(text: str, where: str) -> dict[str, Any]:
    """The values of a dumped config: assignments of literals and ``dict(...)``, nothing else.

    Args:
        text: as ``Config.pretty_text`` of mmengine writes it.
        where: named in errors.

    Raises:
        CheckpointError: anything else than such assignments.

    >>> parse_config("a = dict(b=[1, (2, None)])", 'config.py')
    {'a': {'b': [1, (2, None)]}}
    """
    try:
        return dict(map(_assignment, ast.parse(text).body))
    except (AttributeError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'{where}: is not a plain config of assigned values ({error}). Write it again with tools/deploy.py'
        ) from None


def _assignment(line: ast.stmt) -> tuple[str, Any]:
    if not isinstance(line, ast.Assign) or len(line.targets) != 1 or not isinstance(line.targets[0], ast.Name):
        raise ValueError(f'line {line.lineno} is not an assignment')
    return line.targets[0].id, _value(line.value)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if getattr(node.func, 'id', None) != 'dict':
            raise ValueError(f'line {node.lineno} calls something else than dict')
        values: dict[Any, Any] = {}
        for given in [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg is None)]:
            values.update(_value(given))  # dict({...}) and dict(**{...}): keys that are no names
        return values | {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    if isinstance(node, ast.Dict):
        return {_key(key, node): _value(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kinds: dict[type, Any] = {ast.List: list, ast.Tuple: tuple, ast.Set: set}
        return kinds[type(node)](map(_value, node.elts))
    return ast.literal_eval(node)


def _key(key: Optional[ast.expr], node: ast.expr) -> Any:
    if key is None:
        raise ValueError(f'line {node.lineno} unpacks a dict')
    return ast.literal_eval(key)


@contextmanager
def registered_names_only(file: Path) -> Iterator[None]:
    """Let mmengine build registered classes only.

    A ``type`` that no registry knows is taken by mmengine for a place to import from, so that ``type='os.system'``
    would run a command. Here such a name must lead to a class that is registered under another name, as in configs
    that were written with lazy imports.

    Args:
        file: the config, named in errors.

    Raises:
        CheckpointError: names the type.
    """
    from mmengine.registry import registry

    def resolve(name: str) -> Any:
        place, _, attribute = name.rpartition('.')
        found = getattr(sys.modules.get(place), attribute, None)
        if isinstance(found, type) and any(found is known for known in _registered()):
            return found
        raise CheckpointError(
            f'{file}: type {name!r} is not a registered class of OpenMMLab or of a module that was imported, so it is '
            'not built. Import the module that registers it'
        )

    own, registry.get_object_from_string = registry.get_object_from_string, resolve
    try:
        yield
    except Exception as error:
        refusal = _cause(error)
        if refusal is None:
            raise
        raise refusal from None
    finally:
        registry.get_object_from_string = own


def _registered() -> Iterator[Any]:
    from mmengine import registry

    waiting = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    while waiting:
        found = waiting.pop()
        yield from found.module_dict.values()
        waiting += found.children.values()


def _cause(error: Optional[BaseException]) -> Optional[CheckpointError]:
    """Our refusal, behind what mmengine made of it."""
    while error is not None and not isinstance(error, CheckpointError):
        error = error.__cause__ or error.__context__
    return error
