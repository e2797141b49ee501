"""The range rules by the names that configs give them.

Specs are checked against this table, and rules are written in terms of specs, so the table knows neither.
"""

from typing import Any

from ...errors import ConfigError

_rules: dict[str, Any] = {}


def add(name: str, rule: Any) -> None:
    """Let configs choose ``rule`` by ``name``; the same class may come again, as when its module is reloaded.

    Raises:
        ConfigError: another class has that name.
    """
    known = _rules.get(name)
    if known is not None and _origin(known) != _origin(rule):
        raise ConfigError(
            f"register_range_rule: range='{name}' is {'.'.join(_origin(known))} already. Choose another name for "
            f'{".".join(_origin(rule))}'
        )
    _rules[name] = rule


def _origin(rule: Any) -> tuple[str, str]:
    return type(rule).__module__, type(rule).__qualname__


def find(name: str) -> Any:
    """The rule of a spec.

    Raises:
        ConfigError: it is not registered; a spec was copied from another process.
    """
    if name not in _rules:
        raise ConfigError(
            f"range='{name}' is unknown. Import the module that registers it with mmgdrq.quant.register_range_rule"
        )
    return _rules[name]


def names(of: str) -> tuple[str, ...]:
    """Names of the rules for ``'weights'``, for ``'inputs'``, or for inputs with an ``'affine'`` grid."""
    return tuple(name for name, rule in _rules.items() if getattr(rule, of))
