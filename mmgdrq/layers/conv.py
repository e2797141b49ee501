"""Quantized convolution."""

from torch import Tensor, nn

from .base import ActivationConfig, QuantizedLayer, WeightConfig, attach_quantizers


class Conv2d(QuantizedLayer, nn.Conv2d):
    """``nn.Conv2d`` whose weight and input are fake-quantized.

    Args:
        *args, **kwargs: as for ``nn.Conv2d``.
        weight: dict of :class:`mmgdrq.quant.WeightSpec`.
        activation: dict of :class:`mmgdrq.quant.ActivationSpec`.

    Shape:
        input ``(N, C_in, H, W)``, output ``(N, C_out, H', W')``.
    """

    folds_as = 'conv'

    def __init__(self, *args, weight: WeightConfig = None, activation: ActivationConfig = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        attach_quantizers(self, weight, activation)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.weight)
        return self._conv_forward(self.activation_quantizer(input), weight, self.bias)
