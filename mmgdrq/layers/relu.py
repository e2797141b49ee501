"""A ReLU that keeps one bit per element for its backward pass."""

import torch
from torch import Tensor, nn

from ..quant import relu
from .walk import all_modules


class LeanReLU(nn.ReLU):
    """``nn.ReLU`` with the same values and gradients, which keeps signs in place of its output.

    Before a quantized layer, which keeps codes, nothing else holds on to that output: it was four bytes per element.

    Attributes:
        kernels: whether kernels may be used.
    """

    kernels = True

    def forward(self, input: Tensor) -> Tensor:
        plain = torch.compiler.is_compiling() or torch.jit.is_tracing() or (self.inplace and input._is_view())
        if plain or not (torch.is_grad_enabled() and input.requires_grad):
            return super().forward(input)
        return relu(input, self.inplace, self.kernels)


def set_lean_relu(model: nn.Module, lean: bool = True, kernels: bool = True) -> int:
    """Turn every ``nn.ReLU`` of ``model`` into a :class:`LeanReLU` in place, or back.

    ``F.relu`` calls inside a forward method are not reached.

    Returns:
        the number of modules that are lean now.
    """
    for module in all_modules(model):
        if type(module) in (nn.ReLU, LeanReLU):
            module.__class__ = LeanReLU if lean else nn.ReLU
            if lean:
                module.kernels = kernels  # type: ignore[assignment]  # torch expects a tensor or a module
    return sum(isinstance(module, LeanReLU) for module in all_modules(model))
