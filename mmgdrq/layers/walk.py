"""Find the quantized layers and the quantizers of a model."""

from collections.abc import Iterator

from torch import nn

from .activation_quantizer import ActivationQuantizer
from .base import is_quantized


def is_quantized_model(model: nn.Module) -> bool:
    """Whether ``model`` holds any quantized layer."""
    return any(is_quantized(module) for module in model.modules())


def activation_quantizers(model: nn.Module) -> list[ActivationQuantizer]:
    """All activation quantizers of ``model``, in module order, each once."""
    return [m for m in model.modules() if isinstance(m, ActivationQuantizer)]


def quantized_layers(model: nn.Module) -> Iterator[nn.Module]:
    """All quantized layers of ``model``, in module order, each once."""
    return (m for m in model.modules() if is_quantized(m))
