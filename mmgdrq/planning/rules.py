"""Rules of the user: which layers have other bits, or stay in float."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Optional, Union

from ..errors import ConfigError, nearest, unknown_key
from ..quant import ActivationSpec, WeightSpec, make_spec, override_spec
from ..quant.specs import FLOAT_BITS, AnySpec
from .row import PlanRow

KINDS = ('conv', 'linear')

Override = Union[None, Mapping[str, Any], WeightSpec, ActivationSpec]
"""Values in place of those that a layer has; a whole spec replaces it."""


@dataclass(frozen=True)
class Rule:
    """What a rule matches, and what it says of these layers.

    Attributes:
        pattern: glob over qualified names, which also matches all layers below the module that it names.
        kind: ``'conv'`` or ``'linear'``.
        weight: values of :class:`~mmgdrq.quant.WeightSpec` that the layers get.
        activation: values of :class:`~mmgdrq.quant.ActivationSpec` that they get.
        skip: leave them in float.

    >>> Rule.from_config(dict(pattern='neck', weight=dict(bits=4))).asks_for_bits
    True
    """

    pattern: Optional[str] = None
    kind: Optional[str] = None
    weight: Override = None
    activation: Override = None
    skip: bool = False

    def __post_init__(self) -> None:
        if self.pattern is None and self.kind is None:
            raise ConfigError('rule: needs a pattern, a kind or both')
        if self.pattern is not None and not isinstance(self.pattern, str):
            raise ConfigError(f'rule: pattern={self.pattern!r} is not a text')
        if self.kind is not None and self.kind not in KINDS:
            raise ConfigError(f'rule: kind={self.kind!r} is unknown. Expected one of {KINDS}')
        if not isinstance(self.skip, bool):
            raise ConfigError(f'rule: skip={self.skip!r} is not True or False')
        if self.skip == (self.weight is not None or self.activation is not None):
            raise ConfigError('rule: expected either skip=True or weight/activation overrides')
        make_spec(WeightSpec, self.weight, 'rule.weight')
        make_spec(ActivationSpec, self.activation, 'rule.activation')

    @classmethod
    def from_config(cls, config: Union['Rule', Mapping[str, Any]], where: str = 'rule') -> 'Rule':
        """Build from a config dict; a rule is passed through.

        Args:
            config: the dict of a config.
            where: what errors call it.

        Raises:
            ConfigError: an unknown key or a wrong value.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, Mapping):
            raise ConfigError(f"{where}: expected a dict such as dict(pattern='neck', skip=True), got {config!r}")
        valid = [field.name for field in fields(cls)]
        for key in config:
            if key not in valid:
                raise unknown_key(where, key, valid)
        try:
            return cls(**config)
        except ConfigError as error:
            raise ConfigError(where + str(error).removeprefix('rule')) from None

    @property
    def asks_for_bits(self) -> bool:
        """Whether it names bits, so that it quantizes what an earlier rule skips."""
        bits = [
            config.get('bits') if isinstance(config, Mapping) else config.bits
            for config in (self.weight, self.activation)
            if config is not None
        ]
        return any(value not in (None, FLOAT_BITS) for value in bits)

    def matches(self, row: PlanRow) -> bool:
        """Whether it is about this layer."""
        if self.pattern is not None:
            below = self.pattern.rstrip('.') + '.*'
            names = (row.name, *row.aliases)
            if not any(fnmatchcase(name, self.pattern) or fnmatchcase(name, below) for name in names):
                return False
        return self.kind is None or row.kind == self.kind


def make_rules(rules: Any) -> tuple[Rule, ...]:
    """The rules of a config.

    Raises:
        ConfigError: a wrong one; the message says which.
    """
    if isinstance(rules, (str, Mapping)) or not isinstance(rules, Sequence):
        raise ConfigError(f'rules: expected a list of dicts, got {rules!r}')
    return tuple(Rule.from_config(rule, f'rules[{number}]') for number, rule in enumerate(rules))


def apply_rule(rule: Rule, where: str, rows: Sequence[PlanRow]) -> list[PlanRow]:
    """Change the rows that a rule matches.

    Args:
        rule: what to change.
        where: what errors and reasons call it.
        rows: all rows of a plan; they are not changed.

    Returns:
        All rows, in their order.

    Raises:
        ConfigError: it matches no layer, or none that can be quantized.
    """
    matched = [row for row in rows if rule.matches(row)]
    if not matched:
        raise _no_match(rule, where, rows)
    chosen = [row for row in matched if row.changeable]
    if not chosen and not rule.skip:
        raise ConfigError(
            f"{where}: matches only layers that cannot be quantized, such as '{matched[0].name}' ({matched[0].reason})"
        )
    if not rule.skip and not rule.asks_for_bits:
        first = chosen[0]
        chosen = [row for row in chosen if row.quantized]
        if not chosen:
            raise ConfigError(f"{where}: '{first.name}' is not quantized ({first.reason}). Give bits to quantize it")
    names = {row.name for row in chosen}
    return [_apply_to(row, rule, where) if row.name in names else row for row in rows]


def _no_match(rule: Rule, where: str, rows: Sequence[PlanRow]) -> ConfigError:
    guess = nearest(rule.pattern or '', [name for row in rows for name in (row.name, *row.aliases)])
    hint = f" The nearest layer name is '{guess}'." if guess else ''
    asked = {key: getattr(rule, key) for key in ('pattern', 'kind') if getattr(rule, key) is not None}
    listed = 'Without this rule tools/plan.py CONFIG, or print(mmgdrq.plan(model)), lists all names'
    return ConfigError(f'{where}: {asked} matches no layer.{hint} {listed}')


def _apply_to(row: PlanRow, rule: Rule, where: str) -> PlanRow:
    if rule.skip:
        return row.in_float(f'skipped by {where}')
    assert row.specs, row
    weight, activation = row.specs
    reason = f'by {where}'
    if row.float_input:
        reason = f'{reason}; {row.float_input}'
    else:
        activation = changed_spec(activation, rule.activation, f'{where}.activation')
    weight = changed_spec(weight, rule.weight, f'{where}.weight')
    return row.quantized_to(weight, activation, reason)


def changed_spec(spec: AnySpec, config: Override, where: str) -> AnySpec:
    """Override a spec. A ``k`` stays with the bits, rule and grid it was given for: others have their default."""
    changed = override_spec(spec, config, where)
    if changed.k_belongs_to != spec.k_belongs_to and isinstance(config, Mapping) and 'k' not in config:
        return replace(changed, k=None)
    return changed
