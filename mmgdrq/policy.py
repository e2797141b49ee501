"""Which layer is quantized to what, and why the rest is not. Reads a model and never changes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Optional

from torch import Tensor, nn

from .edges import frozen_layers, image_layers, prediction_layers
from .errors import ConfigError, nearest, unknown_key
from .layers import Projection, float_reason, read_reasons, replacements
from .quant import ActivationSpec, WeightSpec, make_spec, override_spec
from .quant.spec import FLOAT_BITS

EDGE_BITS = 8
"""Bits of the layers that read the image, predict, or are frozen, unless a rule says otherwise."""

Decision = tuple[Optional[WeightSpec], Optional[ActivationSpec], str]
"""Weight, input, and why; None where a layer stays as it is."""

RULE_KEYS = ('pattern', 'kind', 'weight', 'activation', 'skip')
KINDS = ('conv', 'linear')


@dataclass(frozen=True)
class Layer:
    """A weight layer that a plan decides about.

    Attributes:
        names: all its qualified names; a layer that is shared has several.
        module: the layer.
        kind: ``'conv'``, ``'linear'`` or ``'other'``.
        float_input: why its input cannot be quantized; empty where it can.
        reason: why it cannot be quantized at all; empty where it can.
    """

    names: tuple[str, ...]
    module: nn.Module
    kind: str
    float_input: str
    reason: str


@dataclass(frozen=True)
class PlanRow:
    """One weight layer of the model.

    Attributes:
        name: qualified name, the first one where a layer has several.
        kind: ``'conv'``, ``'linear'`` or ``'other'``.
        module: class of the layer.
        filters: number of output channels.
        parameters: number of weight elements.
        weight: what the weight is quantized to; None where the layer stays as it is.
        activation: what the input is quantized to; None where the layer stays as it is.
        reason: why it has these bits, or why it is not quantized.
    """

    name: str
    kind: str
    module: str
    filters: int
    parameters: int
    weight: Optional[WeightSpec]
    activation: Optional[ActivationSpec]
    reason: str

    @property
    def quantized(self) -> bool:
        """Whether anything of the layer is quantized."""
        return self.weight is not None


class Plan(list[PlanRow]):
    """The rows of all weight layers of a model; ``str(plan)`` is a table."""

    def __str__(self) -> str:
        rows = [_cells(row) for row in self]
        head = ('layer', 'type', 'weight', 'input', 'group', 'params', 'why')
        widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
        lines = ['  '.join(c.ljust(w) for c, w in zip(r, widths)).rstrip() for r in [head, *rows]]
        lines.insert(1, '  '.join('-' * w for w in widths))
        return '\n'.join([*lines, self.summary()])

    @property
    def quantized(self) -> list[PlanRow]:
        """The rows that are quantized."""
        return [row for row in self if row.quantized]

    def summary(self) -> str:
        """One line: how many layers and weights are quantized, and how many bits a weight has."""
        total = sum(row.parameters for row in self)
        bits = sum(row.parameters * (row.weight.bits if row.weight else 32) for row in self)
        share = sum(row.parameters for row in self.quantized) / max(total, 1)
        return (
            f'{len(self.quantized)} of {len(self)} weight layers quantized, {share:.1%} of '
            f'{total:,} weights, {bits / max(total, 1):.2f} bits a weight on average'
        )


def make_plan(
    model: nn.Module,
    weight: Optional[Mapping[str, Any]] = None,
    activation: Optional[Mapping[str, Any]] = None,
    rules: Sequence[Mapping[str, Any]] = (),
) -> Plan:
    """Decide for every weight layer of ``model``.

    Default policy: convolutions that read the image, each task's last prediction layers and frozen layers at
    8 bits, all other layers at the asked bits. Then the rules, in order; later rules win.

    Args:
        model: any module.
        weight: dict of :class:`~mmgdrq.quant.WeightSpec`.
        activation: dict of :class:`~mmgdrq.quant.ActivationSpec`.
        rules: dicts with ``pattern`` (glob over qualified names; also matches all layers below the named
            module) and/or ``kind`` (``'conv'`` or ``'linear'``), and either ``skip=True`` or ``weight`` /
            ``activation`` overrides. An override with ``bits`` quantizes what an earlier rule skips; one without
            leaves it in float.

    Raises:
        ConfigError: a bad key or value, or a rule that matches no layer.
    """
    weight_spec = make_spec(WeightSpec, weight, 'weight')
    activation_spec = make_spec(ActivationSpec, activation, 'activation')
    layers = survey(model)
    decisions = _default_decisions(layers, weight_spec, activation_spec)
    skipped: dict[str, Decision] = {}
    for number, rule in enumerate(_check_rules(rules)):
        _apply_rule(rule, f'rules[{number}]', layers, decisions, skipped)
    decisions.update(skipped)
    return Plan(_row(layer, *decisions[layer.names[0]]) for layer in layers)


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Qualified name -> module, for all layers with a weight of two or more dimensions, each module once.

    Normalisation layers, whose weight is a vector, and pure embeddings are not weight layers.
    """
    return {name: module for name, module in model.named_modules() if _own_weights(module)}


def survey(model: nn.Module) -> list[Layer]:
    """All weight layers of ``model``, in module order, each once."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    found, read = replacements(model), read_reasons(model)
    return [
        Layer(
            names=tuple(names[id(module)]),
            module=module,
            kind=found[name].kind if name in found else _kind(module),
            float_input=found[name].float_input if name in found else '',
            reason=float_reason(module) or read.get(name, ''),
        )
        for name, module in weight_layers(model).items()
    ]


def _default_decisions(layers: list[Layer], weight: WeightSpec, activation: ActivationSpec) -> dict[str, Decision]:
    usable = [layer for layer in layers if not layer.reason]
    modules = {layer.names[0]: layer.module for layer in usable}
    edges = dict.fromkeys(frozen_layers(modules), 'frozen: rounded, but not trained')
    trained = {name: module for name, module in modules.items() if name not in edges}
    edges.update(dict.fromkeys(prediction_layers(trained), 'prediction layer'))
    edges.update(dict.fromkeys(image_layers(modules), 'reads the image'))
    decisions: dict[str, Decision] = {layer.names[0]: (None, None, layer.reason) for layer in layers}
    for layer in usable:
        name = layer.names[0]
        decision = weight, activation, ''
        if name in edges:
            decision = _at_edge(weight, activation, edges[name])
        if layer.float_input:
            decision = decision[0], override_spec(activation, {'bits': FLOAT_BITS}, 'activation'), layer.float_input
        decisions[name] = decision
    return decisions


def _at_edge(weight: WeightSpec, activation: ActivationSpec, reason: str) -> Decision:
    if weight.enabled and weight.bits < EDGE_BITS:
        weight = _changed(weight, {'bits': EDGE_BITS}, 'weight')
    if activation.enabled and activation.bits < EDGE_BITS:
        activation = _changed(activation, {'bits': EDGE_BITS}, 'activation')
    return weight, activation, reason


def _changed(spec, config, where: str):
    """Override a spec. A multiplier is one of its bit-width: other bits without one have their default."""
    changed = override_spec(spec, config, where)
    if changed.bits != spec.bits and isinstance(config, Mapping) and 'k' not in config:
        return replace(changed, k=None)
    return changed


def _check_rules(rules: Any) -> list[Mapping[str, Any]]:
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


def _apply_rule(
    rule, where: str, layers: list[Layer], decisions: dict[str, Decision], skipped: dict[str, Decision]
) -> None:
    matched = [layer for layer in layers if _matches(rule, layer)]
    if not matched:
        guess = nearest(rule.get('pattern', ''), [name for layer in layers for name in layer.names])
        hint = f" The nearest layer name is '{guess}'." if guess else ''
        asked = {key: rule[key] for key in ('pattern', 'kind') if key in rule}
        raise ConfigError(f'{where}: {asked} matches no layer.{hint} print(mmgdrq.plan(model)) lists all names')
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
        activation = _changed(activation, rule.get('activation'), f'{where}.activation')
    return _changed(weight, rule.get('weight'), f'{where}.weight'), activation, reason


def _matches(rule, layer: Layer) -> bool:
    pattern = rule.get('pattern')
    if pattern is not None:
        below = pattern.rstrip('.') + '.*'
        if not any(fnmatchcase(name, pattern) or fnmatchcase(name, below) for name in layer.names):
            return False
    return 'kind' not in rule or layer.kind == rule['kind']


def _kind(module: nn.Module) -> str:
    if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
        return 'linear'
    return 'conv' if isinstance(module, nn.modules.conv._ConvNd) else 'other'


def _own_weights(module: nn.Module) -> list[Tensor]:
    if isinstance(module, (nn.Embedding, Projection)):
        return []
    if isinstance(module, nn.MultiheadAttention):
        names = ('in_proj_weight', 'q_proj_weight', 'k_proj_weight', 'v_proj_weight')
    else:
        names = ('weight',)
    weights = [getattr(module, name, None) for name in names]
    return [weight for weight in weights if isinstance(weight, Tensor) and weight.dim() >= 2]


def _row(layer: Layer, weight, activation, reason: str) -> PlanRow:
    if weight is not None and not weight.enabled and not activation.enabled:
        weight, activation, reason = None, None, f'32 bits asked {reason}'.strip()
    weights = _own_weights(layer.module)
    transposed = isinstance(layer.module, nn.modules.conv._ConvTransposeNd)
    return PlanRow(
        name=layer.names[0],
        kind=layer.kind,
        module=type(layer.module).__name__,
        filters=layer.module.out_channels if transposed else sum(w.shape[0] for w in weights),
        parameters=sum(w.numel() for w in weights),
        weight=weight,
        activation=activation,
        reason=reason,
    )


def _bits(spec) -> str:
    return '-' if spec is None else str(spec.bits)


def _cells(row: PlanRow) -> tuple[str, ...]:
    group = '-' if row.weight is None else str(row.weight.group_size)
    return (
        row.name,
        row.module,
        _bits(row.weight),
        _bits(row.activation),
        group,
        f'{row.parameters:,}',
        row.reason,
    )
