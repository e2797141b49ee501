"""The range rules by the names that configs give them.

Specs are checked against this table, and rules are written in terms of specs, so the table knows neither.
"""

from typing import Any

from ...errors import ConfigError

_rules: dict[str, dict[bool, Any]] = {}
"""Name -> whether kernels may be used -> rule."""


def add(name: str, rule: Any, without_kernels: Any) -> None:
    """Let configs choose ``rule`` by ``name``, or the form of it that does without kernels.

    The same class may come again, as when its module is reloaded.

    Raises:
        ConfigError: another class has that name.
    """
    known = _rules[name][True] if name in _rules else rule
    if _origin(known) != _origin(rule):
        raise ConfigError(
            f"register_range_rule: range='{name}' is {'.'.join(_origin(known))} already. Choose another name for "
            f'{".".join(_origin(rule))}'
        )
    _rules[name] = {True: rule, False: without_kernels}


def _origin(rule: Any) -> tuple[str, str]:
    return type(rule).__module__, type(rule).__qualname__


def find(name: str, kernels: bool = True) -> Any:
    """The rule of a spec, which uses kernels or does without.

    Raises:
        ConfigError: it is not registered; a spec was copied from another process.
    """
    if name not in _rules:
        raise ConfigError(
            f"range='{name}' is unknown. Import the module that registers it with mmgdrq.quant.register_range_rule"
        )
    return _rules[name][kernels]


def names(of: str) -> tuple[str, ...]:
    """Names of the rules for ``'weights'``, for ``'inputs'``, or for inputs with an ``'affine'`` grid."""
    return tuple(name for name, rules in _rules.items() if getattr(rules[True], of))
