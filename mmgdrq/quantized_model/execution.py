"""How a quantized model computes: none of it changes what it computes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Union

from torch import nn

from ..errors import ConfigError, unknown_key
from ..layers.quantizers.quantizer import Quantizer
from ..layers.quantizers.weight_quantizer import WeightQuantizer
from ..layers.relu import set_lean_relu
from ..layers.walk import quantized_layers


@dataclass(frozen=True)
class Execution:
    """Switches of :func:`set_execution`.

    Attributes:
        codes: convolutions and linear layers keep one-byte codes for the backward pass; off: float copies.
        cache: weights that have not changed are not quantized again.
        kernels: use the compiled kernels (CPU) and Triton kernels (CUDA); off: torch functions.
        lean_relu: every ``nn.ReLU`` keeps one bit per element for the backward pass; off: its output.
    """

    codes: bool = True
    cache: bool = True
    kernels: bool = True
    lean_relu: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool):
                raise ConfigError(f'execution: {field.name}={value!r} is not True or False')

    @classmethod
    def from_config(cls, config: Union['Execution', Mapping[str, Any]]) -> 'Execution':
        """Build from a config dict.

        Raises:
            ConfigError: an unknown switch, or a value that is not a bool.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, Mapping):
            raise ConfigError(f'execution: expected a dict such as dict(cache=False), got {config!r}')
        valid = [field.name for field in fields(cls)]
        for key in config:
            if key not in valid:
                raise unknown_key('execution', key, valid)
        return cls(**config)


def set_execution(model: nn.Module, **switches: Any) -> Execution:
    """Choose how a quantized model computes; losses and gradients are the same.

    Args:
        model: a quantized model.
        **switches: see :class:`Execution`; those left out take their default.

    Raises:
        ConfigError: an unknown switch, or a value that is not a bool.

    >>> set_execution(nn.Sequential(nn.ReLU()), lean_relu=False)
    Execution(codes=True, cache=True, kernels=True, lean_relu=False)
    """
    execution = Execution.from_config(switches)
    for layer in quantized_layers(model):
        layer.one_byte = execution.codes  # type: ignore[assignment]  # torch expects a tensor or a module
        if isinstance(layer.weight_quantizer, WeightQuantizer):
            layer.weight_quantizer.cache.enabled = execution.cache
            layer.weight_quantizer.cache.clear()
        for quantizer in (layer.weight_quantizer, layer.activation_quantizer):
            if isinstance(quantizer, Quantizer):
                quantizer.kernels = execution.kernels
    set_lean_relu(model, execution.lean_relu, execution.kernels)
    return execution
