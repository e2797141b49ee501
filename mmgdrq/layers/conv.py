"""Quantized convolution."""

from torch import Tensor, nn

from ..quant import conv2d
from .base import QuantizedLayer, operands
from .quantizers.quantizer import refuse_symbolic


class Conv2d(QuantizedLayer, nn.Conv2d):
    """``nn.Conv2d`` whose weight and input are fake-quantized.

    Args:
        *args, **kwargs: as for ``nn.Conv2d``.
        weight: dict of :class:`mmgdrq.quant.WeightSpec`.
        activation: dict of :class:`mmgdrq.quant.ActivationSpec`.

    Attributes:
        one_byte: whether the backward pass keeps one-byte codes; off: float copies, as in the plain formulation.

    Shape:
        input ``(N, C_in, H, W)``, output ``(N, C_out, H', W')``.
    """

    one_byte = True
    folds_as = 'conv'

    def forward(self, input: Tensor) -> Tensor:
        refuse_symbolic(input)
        if input.dim() != 4 or self.padding_mode != 'zeros' or isinstance(self.padding, str):
            weight = self.weight_quantizer(self.weight)
            return self._conv_forward(self.activation_quantizer(input), weight, self.bias)
        return conv2d(input, self.weight, self.bias, *operands(self, input), self)
