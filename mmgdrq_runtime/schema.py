"""Check values that were read from JSON."""

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], None]
"""Raises ValueError, which names the place, for a value that is not as expected."""


def number(low: float = -1e6, high: float = 1e6) -> Check:
    """Expect a finite number within limits."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f'{where} is {value!r:.60}; expected a number from {low:g} to {high:g}')

    return check


def integer(low: int, high: int) -> Check:
    """Expect an integer within limits."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f'{where} is {value!r:.60}; expected an integer from {low} to {high}')

    return check


def one_of(*choices: Any) -> Check:
    """Expect one of some values."""

    def check(value: Any, where: str) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ValueError(f'{where} is {value!r:.60}; expected one of {", ".join(map(repr, choices))}')

    return check


def text(value: Any, where: str) -> None:
    """Expect a string."""
    if not isinstance(value, str):
        raise ValueError(f'{where} is {value!r:.60}; expected a string')


boolean = one_of(True, False)


def optional(check: Check) -> Check:
    """Expect None or what ``check`` accepts."""
    return lambda value, where: None if value is None else check(value, where)


def listed(check: Check, low: int = 1, high: int = 100_000) -> Check:
    """Expect a list of a limited length whose values ``check`` accepts."""

    def check_list(value: Any, where: str) -> None:
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise ValueError(f'{where} is {value!r:.60}; expected a list of {low} to {high} values')
        for i, element in enumerate(value):
            check(element, f'{where}[{i}]')

    return check_list


def table(**fields: Check) -> Check:
    """Expect a table with these keys and no others."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping) or set(value) != set(fields):
            found = sorted(value) if isinstance(value, Mapping) else value
            raise ValueError(f'{where} has {found!r:.200}; expected a table of {", ".join(sorted(fields))}')
        for key, check_value in fields.items():
            check_value(value[key], f'{where}.{key}')

    return check


def by_type(**tables: Check) -> Check:
    """Expect a table whose ``type`` says which of several it is."""

    def check(value: Any, where: str) -> None:
        kind = value.get('type') if isinstance(value, Mapping) else None
        if not isinstance(kind, str) or kind not in tables:
            raise ValueError(f'{where}.type is {kind!r:.60}; expected one of {", ".join(tables)}')
        tables[kind]({key: value[key] for key in value if key != 'type'}, where)

    return check
