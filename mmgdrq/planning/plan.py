"""Which layer is quantized to what, and why the rest is not. Reads a model and never changes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from torch import nn

from ..layers import built_specs, is_quantized
from ..quant import ActivationSpec, WeightSpec, make_spec, override_spec
from ..quant.specs import FLOAT_BITS
from .first_layers import image_layers
from .frozen_layers import frozen_layers
from .prediction_layers import prediction_layers
from .rules import Decision, apply_rule, changed_spec, check_rules
from .train_mode import in_training
from .weight_layers import Layer, own_weights, survey

EDGE_BITS = 8
"""Bits of the layers that read the image, predict, or are frozen, unless a rule says otherwise."""


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
        built: whether it was a quantized layer before, with bits of its own.
    """

    name: str
    kind: str
    module: str
    filters: int
    parameters: int
    weight: Optional[WeightSpec]
    activation: Optional[ActivationSpec]
    reason: str
    built: bool = False

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

    @property
    def pending(self) -> list[PlanRow]:
        """The rows of float layers that are to be quantized."""
        return [row for row in self.quantized if not row.built]

    def summary(self) -> str:
        """One line: how many layers and weights are quantized, and how many bits a weight has."""
        total = sum(row.parameters for row in self)
        bits = sum(row.parameters * (row.weight.bits if row.weight else 32) for row in self)
        share = sum(row.parameters for row in self.quantized if row.weight.enabled) / max(total, 1)
        return (
            f'{len(self.quantized)} of {len(self)} weight layers quantized, {_percent(share)} of '
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
    with in_training(model):  # it may freeze layers there only
        decisions = _default_decisions(layers, weight_spec, activation_spec)
    skipped: dict[str, Decision] = {}
    for number, rule in enumerate(check_rules(rules)):
        apply_rule(rule, f'rules[{number}]', layers, decisions, skipped)
    decisions.update(skipped)
    return Plan(_row(layer, *decisions[layer.names[0]]) for layer in layers)


def _default_decisions(layers: list[Layer], weight: WeightSpec, activation: ActivationSpec) -> dict[str, Decision]:
    usable = [layer for layer in layers if not layer.reason]
    modules = {layer.names[0]: layer.module for layer in layers if not layer.reason or is_quantized(layer.module)}
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
        weight = changed_spec(weight, {'bits': EDGE_BITS}, 'weight')
    if activation.enabled and activation.bits < EDGE_BITS:
        activation = changed_spec(activation, {'bits': EDGE_BITS}, 'activation')
    return weight, activation, reason


def _row(layer: Layer, weight, activation, reason: str) -> PlanRow:
    built = is_quantized(layer.module)
    if built:
        weight, activation = built_specs(layer.module)
    elif weight is not None and not weight.enabled and not activation.enabled:
        weight, activation, reason = None, None, f'32 bits asked; {reason}'.removesuffix('; ')
    weights = own_weights(layer.module)
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
        built=built,
    )


def _percent(share: float) -> str:
    """A share in percent, rounded; all only where it is all.

    >>> _percent(1.0), _percent(0.9999), _percent(0.5)
    ('100.0%', '99.9%', '50.0%')
    """
    return f'{share if share == 1 else min(share, 0.999):.1%}'


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
