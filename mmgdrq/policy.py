"""Which layer is quantized to what, and why the rest is not. Reads a model and never changes it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Optional

from torch import nn

from .errors import ConfigError, nearest, unknown_key
from .layers import Conv2d, Linear, is_quantized
from .quant import ActivationSpec, WeightSpec, make_spec, override_spec

EDGE_BITS = 8
"""Bits of the first convolution and of the last prediction layers, unless a rule says otherwise."""

RULE_KEYS = ('pattern', 'kind', 'weight', 'activation', 'skip')
KINDS = ('conv', 'linear')

REPLACEMENTS: dict[str, tuple[str, type]] = {
    'torch.nn.modules.conv.Conv2d': ('conv', Conv2d),
    'torch.nn.modules.linear.Linear': ('linear', Linear),
    'mmcv.cnn.bricks.wrappers.Conv2d': ('conv', Conv2d),
    'mmcv.cnn.bricks.wrappers.Linear': ('linear', Linear),
}
"""Exact class of a float layer -> its kind and its quantized class."""

SELF_READERS: dict[type, tuple[str, ...]] = {
    nn.MultiheadAttention: ('out_proj',),
    nn.TransformerEncoderLayer: ('linear1', 'linear2'),
}
"""Modules that read the weight of a child themselves (the second in torch's fast path), so that a quantized child
would be bypassed."""

_PREDICTION = re.compile(
    r'(^|_)(cls|reg|obj|seg|logits|logit|centerness|iou|kernel|offset|wh|heatmap|coord)(_preds?|_convs?|s)?$'
)
_TOWER = re.compile(r'(^|\.)(cls|reg|stacked|shared|mask|kernel)_(convs|fcs)$')


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

    Default policy: convolutions that read the image and each task's last prediction layers at 8 bits, all
    other layers at the asked bits. Then the rules, in order; later rules win.

    Args:
        model: any module.
        weight: dict of :class:`~mmgdrq.quant.WeightSpec`.
        activation: dict of :class:`~mmgdrq.quant.ActivationSpec`.
        rules: dicts with ``pattern`` (glob over qualified names; also matches all layers below the named
            module) and/or ``kind`` (``'conv'`` or ``'linear'``), and either ``skip=True`` or ``weight`` /
            ``activation`` overrides.

    Raises:
        ConfigError: a bad key or value, or a rule that matches no layer.
    """
    weight_spec = make_spec(WeightSpec, weight, 'weight')
    activation_spec = make_spec(ActivationSpec, activation, 'activation')
    layers = weight_layers(model)
    reasons = float_reasons(model, layers)
    decisions = _default_decisions(model, layers, reasons, weight_spec, activation_spec)
    for number, rule in enumerate(_check_rules(rules)):
        _apply_rule(rule, f'rules[{number}]', layers, reasons, decisions)
    return Plan(_row(name, layer, *decisions[name]) for name, layer in layers.items())


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Qualified name -> module, for all layers with a weight of two or more dimensions, each module once.

    Normalisation layers, whose weight is a vector, and pure embeddings are not weight layers.
    """
    layers = {}
    for name, module in model.named_modules():
        weight = getattr(module, 'weight', None)
        if weight is None:
            weight = getattr(module, 'in_proj_weight', None)
        if getattr(weight, 'dim', lambda: 0)() >= 2 and not isinstance(module, nn.Embedding):
            layers[name] = module
    return layers


def replacement(layer: nn.Module) -> Optional[tuple[str, type]]:
    """Kind and quantized class for a float layer, or None where there is none."""
    return REPLACEMENTS.get(f'{type(layer).__module__}.{type(layer).__qualname__}')


def is_prediction(name: str) -> bool:
    """Whether a layer of an OpenMMLab head makes predictions, judged by its qualified name.

    >>> is_prediction('roi_head.bbox_head.fc_cls'), is_prediction('bbox_head.cls_convs.0.conv')
    (True, False)
    >>> is_prediction('rpn_head.rpn_reg'), is_prediction('bbox_head.multi_level_conv_obj.2')
    (True, True)
    """
    parts = [part for part in name.split('.') if not part.isdigit()]
    if not any('head' in part for part in parts[:-1]):
        return False
    if parts[-1] == 'conv' or _TOWER.search('.'.join(parts)):
        return False
    return bool(_PREDICTION.search(parts[-1]))


def float_reasons(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, str]:
    """Layer name -> why it cannot be quantized, for those of ``layers`` that cannot."""
    reasons = {name: _reason_of(layer) for name, layer in layers.items()}
    for prefix, parent in model.named_modules():
        for kind, children in SELF_READERS.items():
            if isinstance(parent, kind):
                for child in children:
                    name = f'{prefix}.{child}' if prefix else child
                    reasons[name] = f'nn.{kind.__name__} reads this weight without calling the layer'
    return {name: reason for name, reason in reasons.items() if reason and name in layers}


def _reason_of(layer: nn.Module) -> str:
    if is_quantized(layer):
        own = [getattr(q, 'spec', None) for q in (layer.weight_quantizer, layer.activation_quantizer)]
        return f'is a quantized layer already ({_bits(own[0])}/{_bits(own[1])} bits)'
    if replacement(layer) is None:
        return f'{type(layer).__name__} has no quantized counterpart'
    if layer._parameters.get('weight') is None:
        return 'its weight is computed from other parameters (weight or spectral norm)'
    return ''


def _default_decisions(model, layers, reasons, weight, activation):
    candidates = [name for name in layers if name not in reasons]
    decisions = {name: (None, None, reasons[name]) for name in reasons}
    decisions.update(dict.fromkeys(candidates, (weight, activation, '')))
    for name in _image_layers(layers, candidates):
        decisions[name] = _at_edge(decisions[name], 'reads the image')
    for name in _prediction_layers(model, candidates):
        decisions[name] = _at_edge(decisions[name], 'prediction layer')
    return decisions


def _image_layers(layers, candidates) -> list[str]:
    if not candidates:
        return []
    first = layers[candidates[0]]
    if not isinstance(first, nn.Conv2d) or first.in_channels > 4:
        return candidates[:1]
    channels = first.in_channels
    return [n for n in candidates if getattr(layers[n], 'in_channels', None) == channels]


def _prediction_layers(model, candidates) -> list[str]:
    found = [name for name in candidates if is_prediction(name)]
    heads = {name.split('.')[0] for name in candidates if 'head' in name.split('.')[0]}
    if not heads:
        return found or candidates[-1:]
    for head in heads:
        own = [name for name in candidates if name.split('.')[0] == head]
        if not any(name in found for name in own):
            found.append(own[-1])
    return found


def _at_edge(decision, reason):
    weight, activation, _ = decision
    if weight.enabled and weight.bits < EDGE_BITS:
        weight = override_spec(weight, {'bits': EDGE_BITS}, 'weight')
    if activation.enabled and activation.bits < EDGE_BITS:
        activation = override_spec(activation, {'bits': EDGE_BITS}, 'activation')
    return weight, activation, reason


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


def _apply_rule(rule, where, layers, reasons, decisions) -> None:
    matched = [name for name, layer in layers.items() if _matches(rule, name, layer)]
    if not matched:
        guess = nearest(rule.get('pattern', ''), layers)
        hint = f" The nearest layer name is '{guess}'." if guess else ''
        asked = {key: rule[key] for key in ('pattern', 'kind') if key in rule}
        raise ConfigError(f'{where}: {asked} matches no layer.{hint} print(mmgdrq.plan(model)) lists all names')
    usable = [name for name in matched if name not in reasons]
    if not usable and not rule.get('skip'):
        raise ConfigError(
            f"{where}: matches only layers that cannot be quantized, such as '{matched[0]}' ({reasons[matched[0]]})"
        )
    for name in usable:
        weight, activation, _ = decisions[name]
        if rule.get('skip'):
            decisions[name] = (None, None, f'skipped by {where}')
            continue
        if weight is None:
            raise ConfigError(f"{where}: '{name}' was skipped by an earlier rule; override or skip it, not both")
        decisions[name] = (
            override_spec(weight, rule.get('weight'), f'{where}.weight'),
            override_spec(activation, rule.get('activation'), f'{where}.activation'),
            f'by {where}',
        )


def _matches(rule, name, layer) -> bool:
    pattern = rule.get('pattern')
    if pattern is not None and not (fnmatchcase(name, pattern) or fnmatchcase(name, pattern.rstrip('.') + '.*')):
        return False
    return 'kind' not in rule or _kind(layer) == rule['kind']


def _kind(layer) -> str:
    if isinstance(layer, nn.Linear):
        return 'linear'
    return 'conv' if isinstance(layer, nn.modules.conv._ConvNd) else 'other'


def _row(name, layer, weight, activation, reason) -> PlanRow:
    if weight is not None and not weight.enabled and not activation.enabled:
        weight, activation, reason = None, None, f'32 bits asked {reason}'.strip()
    tensor = getattr(layer, 'weight', None)
    tensor = layer.in_proj_weight if tensor is None else tensor
    return PlanRow(
        name=name,
        kind=_kind(layer),
        module=type(layer).__name__,
        filters=tensor.shape[0],
        parameters=tensor.numel(),
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
