"""The weight layers of a model, and which of them can be quantized."""

import re
from dataclasses import dataclass

from torch import Tensor, nn

from ..layers import Projection, float_reason, read_reasons, replacements

_WEIGHT = re.compile(r'weight|proj|^w\d*$', re.IGNORECASE)
"""Names of parameters that are weights, where none is called ``weight``. Others of two or more dimensions, such as
position embeddings, class tokens and tables of biases, are no weights of a layer."""


@dataclass(frozen=True)
class WeightLayer:
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


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Qualified name -> module, for all layers with a weight of two or more dimensions, each module once.

    Normalisation layers, whose weight is a vector, and pure embeddings are not weight layers. Modules with no
    ``weight`` are where they have parameters that are named like one, as ``nn.LSTM`` has.
    """
    return {name: module for name, module in model.named_modules() if own_weights(module)}


def inventory(model: nn.Module) -> list[WeightLayer]:
    """All weight layers of ``model``, in module order, each once."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    found, read = replacements(model), read_reasons(model)
    return [
        WeightLayer(
            names=tuple(names[id(module)]),
            module=module,
            kind=found[name].kind if name in found else _kind(module),
            float_input=found[name].float_input if name in found else '',
            reason=float_reason(module) or read.get(name, ''),
        )
        for name, module in weight_layers(model).items()
    ]


def own_weights(module: nn.Module) -> list[Tensor]:
    """The weights of a module itself that have two or more dimensions."""
    if isinstance(module, (nn.Embedding, Projection)):
        return []
    names = ['weight']
    if isinstance(module, nn.MultiheadAttention):
        names = ['in_proj_weight', 'q_proj_weight', 'k_proj_weight', 'v_proj_weight']
    found = [getattr(module, name, None) for name in names]
    weights: list[Tensor] = [weight for weight in found if isinstance(weight, Tensor)]
    if not weights:
        weights = [weight for name, weight in module.named_parameters(recurse=False) if _WEIGHT.search(name)]
    return [weight for weight in weights if weight.dim() >= 2]


def _kind(module: nn.Module) -> str:
    if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
        return 'linear'
    return 'conv' if isinstance(module, nn.modules.conv._ConvNd) else 'other'
