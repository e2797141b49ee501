"""Read the config text of a deployed directory without running it as code."""

import ast
from typing import Any

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
        return {_name(line): _value(line.value) for line in ast.parse(text).body}
    except (AttributeError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'{where}: is not a plain config of assigned values ({error}). Write it again with tools/deploy.py'
        ) from None


def _name(line: ast.stmt) -> str:
    if not isinstance(line, ast.Assign) or len(line.targets) != 1:
        raise ValueError(f'line {line.lineno} is not an assignment')
    return line.targets[0].id


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if getattr(node.func, 'id', None) != 'dict':
            raise ValueError(f'line {node.lineno} calls something else than dict')
        values = {}
        for given in [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg is None)]:
            values.update(_value(given))  # dict({...}) and dict(**{...}): keys that are no names
        return values | {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(key): _value(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        values = [_value(element) for element in node.elts]
        return {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)](values)
    return ast.literal_eval(node)
