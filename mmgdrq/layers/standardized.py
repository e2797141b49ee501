"""Convolutions with weight standardization: standardize first, then quantize what the convolution uses."""

from typing import cast

import torch
from torch import Tensor

from ..quant import scale_clip_
from .base import QuantizedLayer
from .functional_weight import functional_copy


class _Standardized(QuantizedLayer):
    """Scale-Clip works on the stored weight around the mean of each filter, which standardization removes."""

    @torch.no_grad()
    def scale_clip_(self) -> None:
        stored, used, quantizer = self.stored_weight(), self.pruned_weight(), self.weight_quantizer
        mean = (stored if used is None else used).mean(dim=(1, 2, 3), keepdim=True)
        centred = None if used is None else used - mean
        stored.copy_(scale_clip_(stored - mean, quantizer.spec, quantizer.kernels, centred) + mean)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.filters())
        return self._conv_forward(self.activation_quantizer(x), weight, self.bias)


class ConvWS2d(_Standardized):
    """For mmcv's ``ConvWS2d``: (w - mean) / (std + eps) of every filter is quantized."""

    def filters(self) -> Tensor:
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return (self.weight - mean) / (std + self.eps)


class ConvAWS2d(_Standardized):
    """For mmcv's ``ConvAWS2d``: the standardized weight with its fixed gamma and beta is quantized."""

    def filters(self) -> Tensor:
        return self._get_weight(self.weight)


class SAConv2d(_Standardized):
    """For mmcv's ``SAConv2d`` (switchable atrous convolution): both of its weights are quantized.

    The second weight is the first plus ``weight_diff``; both share the quantizer, and with ``range='search'`` or
    ``'learned'`` the range. The input is not quantized: the layer adds global context to it before it convolves.
    """

    has_one_weight = False

    def filters(self) -> Tensor:
        return super()._get_weight(self.weight)  # type: ignore[misc]  # of mmcv's class, a later base

    def _get_weight(self, weight: Tensor) -> Tensor:
        return self.weight_quantizer(super()._get_weight(weight))  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        small = self.filters()
        # the float layer adds the difference to the quantized small weight
        difference = self.weight_quantizer(small + self.weight_diff) - self.weight_quantizer(small)
        twin = cast(_Standardized, functional_copy(self, weight_diff=difference))
        return super(_Standardized, twin).forward(x)
