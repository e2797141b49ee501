"""Rules of the user: which layers have other bits, or stay in float."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Optional

from ..errors import ConfigError, nearest, unknown_key
from ..quant import ActivationSpec, WeightSpec, override_spec
from ..quant.specs import FLOAT_BITS
from .weight_layers import Layer

Decision = tuple[Optional[WeightSpec], Optional[ActivationSpec], str]
"""Weight, input, and why; None where a layer stays as it is."""

RULE_KEYS = ('pattern', 'kind', 'weight', 'activation', 'skip')
KINDS = ('conv', 'linear')


def check_rules(rules: Any) -> list[Mapping[str, Any]]:
    """The rules, if their keys and values are right.

    Raises:
        ConfigError: they are not; the message says which.
    """
    if isinstance(rules, (str, Mapping)) or not isinstance(rules, Sequence):
        raise ConfigError(f'rules: expected a list of dicts, got {rules!r}')
    for number, rule in enumerate(rules):
        where = f'rules[{number}]'
        if not isinstance(rule, Mapping):
            raise ConfigError(f"{where}: expected a dict such as dict(pattern='neck', skip=True)")
        for key in rule:
            if key not in RULE_KEYS:
                raise unknown_key(where, key, RULE_KEYS)
        if 'pattern' not in rule and 'kind' not in rule:
            raise ConfigError(f'{where}: needs a pattern, a kind or both')
        if not isinstance(rule.get('pattern', ''), str):
            raise ConfigError(f'{where}: pattern={rule["pattern"]!r} is not a text')
        if rule.get('kind', 'conv') not in KINDS:
            raise ConfigError(f'{where}: kind={rule["kind"]!r} is unknown. Expected one of {KINDS}')
        if not isinstance(rule.get('skip', False), bool):
            raise ConfigError(f'{where}: skip={rule["skip"]!r} is not True or False')
        if bool(rule.get('skip')) == bool({'weight', 'activation'} & set(rule)):
            raise ConfigError(f'{where}: expected either skip=True or weight/activation overrides')
    return list(rules)


def apply_rule(
    rule, where: str, layers: list[Layer], decisions: dict[str, Decision], skipped: dict[str, Decision]
) -> None:
    """Change the decisions about the layers that a rule matches.

    Args:
        rule: one of :func:`check_rules`.
        where: what errors and reasons call it.
        layers: all layers of the model.
        decisions: name -> decision; changed in place.
        skipped: name -> decision of those that stay in float; changed in place.

    Raises:
        ConfigError: it matches no layer, or none that can be quantized.
    """
    matched = [layer for layer in layers if _matches(rule, layer)]
    if not matched:
        guess = nearest(rule.get('pattern', ''), [name for layer in layers for name in layer.names])
        hint = f" The nearest layer name is '{guess}'." if guess else ''
        asked = {key: rule[key] for key in ('pattern', 'kind') if key in rule}
        listed = 'Without this rule tools/plan.py CONFIG, or print(mmgdrq.plan(model)), lists all names'
        raise ConfigError(f'{where}: {asked} matches no layer.{hint} {listed}')
    usable = [layer for layer in matched if not layer.reason]
    if not usable and not rule.get('skip'):
        raise ConfigError(
            f"{where}: matches only layers that cannot be quantized, such as '{matched[0].names[0]}' "
            f'({matched[0].reason})'
        )
    if rule.get('skip'):
        skipped.update((layer.names[0], (None, None, f'skipped by {where}')) for layer in usable)
        return
    if not _asks_for_bits(rule):
        name = usable[0].names[0]
        usable = [layer for layer in usable if layer.names[0] not in skipped]
        if not usable:
            raise ConfigError(f"{where}: '{name}' was skipped by an earlier rule. Give bits to quantize it again")
    for layer in usable:
        name = layer.names[0]
        decisions[name] = _overridden(decisions[name], rule, where, layer)
        skipped.pop(name, None)


def _asks_for_bits(rule) -> bool:
    configs = (rule.get('weight'), rule.get('activation'))
    asked = (config.get('bits') if isinstance(config, Mapping) else getattr(config, 'bits', None) for config in configs)
    return any(bits not in (None, FLOAT_BITS) for bits in asked)


def _overridden(decision: Decision, rule, where: str, layer: Layer) -> Decision:
    weight, activation, _ = decision
    reason = f'by {where}'
    if layer.float_input:
        reason = f'{reason}; {layer.float_input}'
    else:
        activation = changed_spec(activation, rule.get('activation'), f'{where}.activation')
    return changed_spec(weight, rule.get('weight'), f'{where}.weight'), activation, reason


def changed_spec(spec, config, where: str):
    """Override a spec. A ``k`` stays with the bits, rule and grid it was given for: others have their default."""
    changed = override_spec(spec, config, where)
    if changed.k_belongs_to != spec.k_belongs_to and isinstance(config, Mapping) and 'k' not in config:
        return replace(changed, k=None)
    return changed


def _matches(rule, layer: Layer) -> bool:
    pattern = rule.get('pattern')
    if pattern is not None:
        below = pattern.rstrip('.') + '.*'
        if not any(fnmatchcase(name, pattern) or fnmatchcase(name, below) for name in layer.names):
            return False
    return 'kind' not in rule or layer.kind == rule['kind']
