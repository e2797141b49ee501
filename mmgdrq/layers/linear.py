"""Quantized linear layer."""

from torch import Tensor, nn

from ..quant import linear
from .base import QuantizedLayer, operands


class Linear(QuantizedLayer, nn.Linear):
    """``nn.Linear`` whose weight and input are fake-quantized.

    Args:
        *args, **kwargs: as for ``nn.Linear``.
        weight: dict of :class:`mmgdrq.quant.WeightSpec`.
        activation: dict of :class:`mmgdrq.quant.ActivationSpec`.

    Attributes:
        one_byte: whether the backward pass keeps one-byte codes; off: float copies, as in the plain formulation.

    Shape:
        input ``(..., in_features)``, output ``(..., out_features)``.
    """

    one_byte = True
    folds_as = 'linear'

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, *operands(self, input))
