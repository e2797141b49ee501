"""A quantized layer that gives way to a float one does not do so silently."""

from collections.abc import Iterator
from typing import Optional

from torch import nn

from ..errors import QuantizationError
from ..layers.base import is_quantized
from ..layers.quantizers.quantizer import Quantizer
from ..layers.walk import all_modules
from .state import ATTRIBUTE


def remember_layers(model: nn.Module) -> None:
    """Note what is quantized now, and which weights of the root of a quantized model are not."""
    quantizers = sum(isinstance(module, Quantizer) for module in all_modules(model))
    getattr(model, ATTRIBUTE).layers = quantizers, frozenset(_float_layers(model))


def refuse_new_float_layers(model: nn.Module, quantizers: Optional[int] = None) -> None:
    """Refuse a model that has lost quantized layers and got float ones, as ``switch_to_deploy`` of RepVGG does it.

    Layers that are just gone, such as an auxiliary head that evaluation does not need, are no error.

    Args:
        model: what :func:`remember_layers` has seen before.
        quantizers: number of quantizers in it now, where that is known; it costs nothing where it has not fallen.

    Raises:
        QuantizationError: names the new layers.
    """
    before, known = getattr(model, ATTRIBUTE).layers
    if quantizers is not None and quantizers >= before:
        return
    new = [name for name in _float_layers(model) if name not in known]
    if new:
        raise QuantizationError(
            f'{len(new)} layers of the quantized model were replaced by float layers, such as {new[0]} '
            '(switch_to_deploy and reparameterization do so). Do that to the float model and quantize it then, or '
            'keep the layers'
        )
    remember_layers(model)


def _float_layers(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        weight = module._parameters.get('weight')
        if weight is not None and weight.dim() > 1 and not is_quantized(module):
            yield name
