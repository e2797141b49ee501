"""Quantized convolutions over one and three dimensions."""

from torch import Tensor, nn

from .base import QuantizedLayer


class _ConvNd(QuantizedLayer):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.filters())
        return self._conv_forward(self.activation_quantizer(input), weight, self.bias)


class Conv1d(_ConvNd, nn.Conv1d):
    """``nn.Conv1d`` whose weight and input are fake-quantized; see :class:`mmgdrq.Conv2d`."""


class Conv3d(_ConvNd, nn.Conv3d):
    """``nn.Conv3d`` whose weight and input are fake-quantized; see :class:`mmgdrq.Conv2d`."""
