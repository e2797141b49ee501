"""The plan of a model: which layer is quantized to what, why, and what it costs. It can be edited, saved and read."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Optional

from ..errors import ConfigError, unknown_key
from ..files import PathLike, write_file
from ..quant import ActivationSpec, WeightSpec, make_spec
from .row import PlanRow
from .rules import Override, Rule, apply_rule
from .table import html_table, text_table

FORMAT = 'mmgdrq.plan'
VERSION = 1


class Plan(list[PlanRow]):
    """The rows of all weight layers of a model; ``str(plan)`` is a table.

    ``mmgdrq.quantize(model, plan=plan)`` does what it says.
    """

    def set(
        self,
        pattern: Optional[str] = None,
        *,
        kind: Optional[str] = None,
        weight: Override = None,
        activation: Override = None,
        skip: bool = False,
        **values: Any,
    ) -> 'Plan':
        """Change the rows that a pattern matches, in place, as a rule does.

        Args:
            pattern: glob over qualified names, which also matches all layers below the module that it names.
            kind: ``'conv'`` or ``'linear'``.
            weight: values of :class:`~mmgdrq.quant.WeightSpec` that the layers get.
            activation: values of :class:`~mmgdrq.quant.ActivationSpec` that they get.
            skip: leave them in float.
            **values: single values, such as ``weight_bits=4`` or ``activation_range='minmax'``.

        Raises:
            ConfigError: an unknown key, a wrong value, or a pattern that matches no layer.
        """
        where = 'plan.set'
        overrides = _with_values(where, weight, activation, values)
        config = dict(pattern=pattern, kind=kind, **overrides, skip=skip)
        self[:] = map(settle, apply_rule(Rule.from_config(config, where), where, self))
        return self

    @property
    def quantized(self) -> list[PlanRow]:
        """The rows that are quantized."""
        return [row for row in self if row.quantized]

    @property
    def pending(self) -> list[PlanRow]:
        """The rows of float layers that are to be quantized."""
        return [row for row in self.quantized if not row.built]

    def summary(self) -> str:
        """One line: how many layers and weights are quantized, and how many bits a weight has."""
        total = sum(row.parameters for row in self)
        bits = sum(row.parameters * row.bits for row in self)
        share = sum(row.parameters for row in self if row.enabled[0]) / max(total, 1)
        return (
            f'{len(self.quantized)} of {len(self)} weight layers quantized, {_percent(share)} of '
            f'{total:,} weights, {bits / max(total, 1):.2f} bits per weight on average'
        )

    def __str__(self) -> str:
        return f'{text_table(self)}\n{self.summary()}'

    def _repr_html_(self) -> str:
        return f'{html_table(self)}<p>{self.summary()}</p>'

    def to_json(self) -> str:
        """The plan as JSON; :meth:`from_json` gives an equal one."""
        return json.dumps({'format': FORMAT, 'version': VERSION, 'rows': [asdict(row) for row in self]}, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str = 'plan') -> 'Plan':
        """Read what :meth:`to_json` gave.

        Args:
            text: JSON.
            where: what errors call it.

        Raises:
            ConfigError: it is no plan; the message says what is wrong with it.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ConfigError(f'{where}: it is not JSON ({error})') from None
        if not isinstance(data, dict) or data.get('format') != FORMAT or not isinstance(data.get('rows'), list):
            raise ConfigError(f'{where}: it is no plan. Expected what Plan.save has written')
        if data.get('version') != VERSION:
            raise ConfigError(f'{where}: it has version {data.get("version")!r}; this mmgdrq reads {VERSION}')
        return cls(_read_row(row, f'{where}.rows[{number}]') for number, row in enumerate(data['rows']))

    def save(self, path: PathLike) -> None:
        """Write the plan to a JSON file, in place of an earlier one."""
        write_file(path, self.to_json() + '\n')

    @classmethod
    def load(cls, path: PathLike) -> 'Plan':
        """Read a plan from a JSON file.

        Raises:
            ConfigError: it is no plan.
        """
        return cls.from_json(Path(path).read_text(encoding='utf-8'), str(path))


def settle(row: PlanRow) -> PlanRow:
    """A row whose weight and activation both have 32 bits is one that stays as it is."""
    if row.built or not row.quantized or any(row.enabled):
        return row
    return row.in_float(f'32 bits asked; {row.reason}'.removesuffix('; '))


def _with_values(where: str, weight: Override, activation: Override, values: Mapping[str, Any]) -> dict[str, Override]:
    """The overrides of weight and activation, with single values added to them."""
    overrides: dict[str, Any] = dict(weight=weight, activation=activation)
    specs = dict(weight=WeightSpec, activation=ActivationSpec)
    valid = {f'{part}_{field.name}': (part, field.name) for part, spec in specs.items() for field in fields(spec)}
    for name, value in values.items():
        if name not in valid:
            raise unknown_key(where, name, ['pattern', 'kind', 'weight', 'activation', 'skip', *valid])
        part, key = valid[name]
        if not isinstance(overrides[part] or {}, Mapping):
            raise ConfigError(f'{where}: {name} beside a whole spec for {part}. Put it into the spec')
        overrides[part] = {**(overrides[part] or {}), key: value}
    return overrides


def _read_row(data: Any, where: str) -> PlanRow:
    valid = {field.name: field.default is MISSING for field in fields(PlanRow)}
    if not isinstance(data, dict):
        raise ConfigError(f'{where}: expected an object with {", ".join(valid)}, got {data!r}')
    for key in data:
        if key not in valid:
            raise unknown_key(where, key, valid)
    for key, needed in valid.items():
        if needed and key not in data:
            raise ConfigError(f"{where}: '{key}' is missing")
    skipped = data.get('skipped')
    if skipped is not None:
        if not isinstance(skipped, list) or len(skipped) != 2:
            raise ConfigError(f'{where}.skipped: expected the specs of weight and activation, got {skipped!r}')
        skipped = _specs(skipped[0], skipped[1], f'{where}.skipped')
    weight, activation = _specs(data['weight'], data['activation'], where)
    return PlanRow(
        **{**data, 'weight': weight, 'activation': activation, 'aliases': tuple(data['aliases']), 'skipped': skipped}
    )


def _specs(weight: Any, activation: Any, where: str) -> tuple[Optional[WeightSpec], Optional[ActivationSpec]]:
    if (weight is None) != (activation is None):
        raise ConfigError(f'{where}: weight and activation are both null, for a layer in float, or both given')
    if weight is None:
        return None, None
    return make_spec(WeightSpec, weight, f'{where}.weight'), make_spec(
        ActivationSpec, activation, f'{where}.activation'
    )


def _percent(share: float) -> str:
    """A share in percent, rounded; all only where it is all.

    >>> _percent(1.0), _percent(0.9999), _percent(0.5)
    ('100.0%', '99.9%', '50.0%')
    """
    return f'{share if share == 1 else min(share, 0.999):.1%}'
