"""Make the plan of a model: the default policy, then the rules of the user. Reads a model and never changes it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Optional

from torch import nn

from ..layers import built_specs, is_quantized
from ..quant import ActivationSpec, WeightSpec, override_spec
from ..quant.specs import FLOAT_BITS, AnySpec
from .first_layers import image_layers
from .frozen_layers import frozen_layers
from .known_heads import known_prediction_layers
from .plan import Plan, settle
from .prediction_layers import prediction_layers
from .row import PlanRow
from .rules import Rule, apply_rule, changed_spec
from .traced_inputs import TRACED, Example, Seen, trace
from .train_mode import in_training
from .weight_layers import WeightLayer, inventory, own_weights

FIRST_AND_LAST_BITS = 8
"""Bits of the layers that read the image, predict, or are frozen, unless a rule says otherwise."""


def make_plan(
    model: nn.Module,
    weight: WeightSpec = WeightSpec(),  # noqa: B008 (frozen)
    activation: ActivationSpec = ActivationSpec(),  # noqa: B008
    rules: Sequence[Rule] = (),
    example: Optional[Example] = None,
) -> Plan:
    """Decide for every weight layer of ``model``.

    Default policy: convolutions that read the image, each task's last prediction layers and frozen layers at
    8 bits, all other layers at the asked bits. Then the rules, in order; later rules win.

    Args:
        model: any module.
        weight: what the weights are quantized to.
        activation: what the inputs of the layers are quantized to.
        rules: changes to these. An override with ``bits`` quantizes what an earlier rule skips; one without leaves it
            in float.
        example: an input of the model, which then runs once, and the layers that read it are found so. Without it they
            are found by their channels and names.

    Raises:
        ConfigError: a rule matches no layer, or none that can be quantized; or no layer reads the example.
    """
    layers = inventory(model)
    traced = None if example is None else trace(model, example, {layer.names[0]: layer.module for layer in layers})
    with in_training(model):  # it may freeze layers there only
        reasons = first_and_last(model, layers, traced)
    rows = [_row(layer, weight, activation, reasons.get(layer.names[0], '')) for layer in layers]
    for number, rule in enumerate(rules):
        rows = apply_rule(rule, f'rules[{number}]', rows)
    if traced is not None:
        rows = [replace(row, macs=traced[row.name].macs if row.name in traced else None) for row in rows]
    return Plan(map(settle, rows))


def plan_as_built(model: nn.Module, before: Optional[Plan] = None) -> Plan:
    """The plan of a model as it is: what its quantized layers are quantized to; the rest is in float.

    Args:
        model: a model with quantized layers.
        before: the plan that it was quantized by, which knows the reasons; None for registered layers.
    """
    reasons = {row.name: row.reason for row in before or ()}
    return Plan(_as_built(row, reasons.get(row.name)) for row in make_plan(model))


def _as_built(row: PlanRow, reason: Optional[str]) -> PlanRow:
    if row.built:
        return replace(row, reason='registered' if reason is None else reason)
    if reason is None:
        reason = 'not registered' if row.quantized else row.reason
    return row.in_float(reason)


def first_and_last(
    model: nn.Module, layers: list[WeightLayer], traced: Optional[Mapping[str, Seen]] = None
) -> dict[str, str]:
    """Name -> why the layer has :data:`FIRST_AND_LAST_BITS`, for those that have.

    Args:
        model: the model.
        layers: all of the model, as it is while it trains.
        traced: what they did in a forward pass; None: they are judged by their channels and names.
    """
    modules = {layer.names[0]: layer.module for layer in layers if not layer.reason or is_quantized(layer.module)}
    if traced is None:
        first, ordered = image_layers(modules), modules
    else:
        first = {name: TRACED for name, seen in traced.items() if seen.reads_input and name in modules}
        ordered = {name: module for name, module in modules.items() if name not in traced}
        ordered.update((name, modules[name]) for name in traced if name in modules)  # in the order in which they run
    reasons = dict.fromkeys(frozen_layers(modules), 'frozen: quantized, not trained')
    trained = {name: module for name, module in ordered.items() if name not in reasons}
    known, decided = known_prediction_layers(model, trained)
    reasons.update((name, f'prediction layer ({head})') for name, head in known.items())
    others = [name for name in trained if name not in decided]
    reasons.update(dict.fromkeys(prediction_layers(others, known), 'prediction layer (by name)'))
    reasons.update(first)
    return reasons


def _row(layer: WeightLayer, weight: WeightSpec, activation: ActivationSpec, reason: str) -> PlanRow:
    """The row of a layer by the default policy."""
    module, built = layer.module, is_quantized(layer.module)
    weights = own_weights(module)
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    row = PlanRow(
        name=layer.names[0],
        kind=layer.kind,
        module=type(module).__name__,
        filters=module.out_channels if transposed else sum(w.shape[0] for w in weights),
        parameters=sum(w.numel() for w in weights),
        weight=None,
        activation=None,
        reason=layer.reason or layer.float_input or reason,
        built=built,
        aliases=layer.names[1:],
        float_input=layer.float_input,
    )
    if built:
        return row.quantized_to(*built_specs(module))
    if layer.reason:
        return row
    if reason:
        weight, activation = _at_least_8_bits(weight, 'weight'), _at_least_8_bits(activation, 'activation')
    if layer.float_input:
        activation = override_spec(activation, {'bits': FLOAT_BITS}, 'activation')
    return row.quantized_to(weight, activation)


def _at_least_8_bits(spec: AnySpec, where: str) -> AnySpec:
    return changed_spec(spec, {'bits': FIRST_AND_LAST_BITS}, where) if spec.bits < FIRST_AND_LAST_BITS else spec
