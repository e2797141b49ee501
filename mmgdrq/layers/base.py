"""What all quantized layers share: how quantizers are attached, and how a float layer becomes one."""

from collections.abc import Mapping
from typing import Any, Optional, Union

from torch import nn

from ..quant import ActivationSpec, WeightSpec, make_spec
from .quantizer import ActivationQuantizer, WeightQuantizer

WeightConfig = Union[None, Mapping[str, Any], WeightSpec]
ActivationConfig = Union[None, Mapping[str, Any], ActivationSpec]


def attach_quantizers(
    layer: nn.Module,
    weight: WeightConfig = None,
    activation: ActivationConfig = None,
    name: str = '',
) -> None:
    """Give ``layer`` its ``weight_quantizer`` and ``activation_quantizer``.

    A tensor with ``bits=32`` gets an ``nn.Identity`` in their place.
    """
    weight = make_spec(WeightSpec, weight, 'weight')
    activation = make_spec(ActivationSpec, activation, 'activation')
    device = layer.weight.device
    layer.weight_quantizer = WeightQuantizer(weight, layer.weight) if weight.enabled else nn.Identity()
    layer.activation_quantizer = ActivationQuantizer(activation, device) if activation.enabled else nn.Identity()
    for quantizer in (layer.weight_quantizer, layer.activation_quantizer):
        quantizer.layer_name = name
        quantizer.to(device)


def quantize_layer(layer: nn.Module, cls: type, weight: WeightSpec, activation: ActivationSpec, name: str) -> None:
    """Turn a float layer into ``cls`` in place.

    The object stays the same, and with it its Parameters, hooks, aliases in other modules and every
    reference that Python code holds to it; only its class changes and two quantizers are added.
    """
    layer.__class__ = cls
    attach_quantizers(layer, weight, activation, name)


def is_quantized(module: Optional[nn.Module]) -> bool:
    """Whether ``module`` is a quantized layer of mmgdrq."""
    return hasattr(module, 'weight_quantizer') and hasattr(module, 'activation_quantizer')
