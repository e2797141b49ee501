"""Find the quantized layers and the quantizers of a model."""

from collections.abc import Iterator

from torch import nn

from .base import is_quantized
from .quantizers.activation_quantizer import ActivationQuantizer


def all_modules(model: nn.Module) -> Iterator[nn.Module]:
    """All modules of ``model`` and itself, each once, whatever attribute hides the method of this name.

    >>> model = nn.Sequential(nn.ReLU())
    >>> model.modules = [model[0]]  # some networks keep a list under this name, and train and save so
    >>> len(list(all_modules(model)))
    2
    """
    return nn.Module.modules(model)


def is_quantized_model(model: nn.Module) -> bool:
    """Whether ``model`` holds any quantized layer."""
    return any(is_quantized(module) for module in all_modules(model))


def activation_quantizers(model: nn.Module) -> list[ActivationQuantizer]:
    """All activation quantizers of ``model``, in module order, each once."""
    return [m for m in all_modules(model) if isinstance(m, ActivationQuantizer)]


def quantized_layers(model: nn.Module) -> Iterator[nn.Module]:
    """All quantized layers of ``model``, in module order, each once."""
    return (m for m in all_modules(model) if is_quantized(m))
