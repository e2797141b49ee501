"""Read the config text of a deployed directory without running it as code."""

import ast
from typing import Any, Optional

from ...errors import CheckpointError
from .old_paths import use_registered_names


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
        config = dict(map(_assignment, ast.parse(text).body))
    except (AttributeError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'{where}: is not a plain config of assigned values ({error}). Write it again with tools/deploy.py'
        ) from None
    use_registered_names(config)
    return config


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
