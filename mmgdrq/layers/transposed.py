"""Quantized transposed convolutions; their weights have shape ``(C_in, C_out / groups, ...)``."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..quant import scale_clip_
from .base import QuantizedLayer

OPERATIONS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
"""Number of spatial dimensions -> the operation."""


def filters_first(weight: Tensor, groups: int) -> Tensor:
    """Arrange a weight of shape ``(C_in, C_out / groups, ...)`` as ``(C_out, C_in / groups, ...)``.

    >>> filters_first(torch.zeros(4, 3, 2, 2), groups=2).shape
    torch.Size([6, 2, 2, 2])
    """
    rows = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return rows.transpose(1, 2).flatten(0, 1)


class _ConvTranspose(QuantizedLayer):
    """One range per group of output filters, as for an ordinary convolution."""

    def filters(self) -> Tensor:
        return filters_first(self.weight, self.groups)

    def forward(self, input: Tensor, output_size: Optional[list[int]] = None) -> Tensor:
        dims = len(self.kernel_size)
        geometry = self.stride, self.padding, self.kernel_size, dims, self.dilation
        output_padding = self._output_padding(input, output_size, *geometry)
        x, filters = self.activation_quantizer(input), self.weight_quantizer(self.filters())
        # swapping the two channel dimensions within each group again gives the stored order
        weight = filters_first(filters, self.groups)
        return OPERATIONS[dims](
            x, weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )

    @torch.no_grad()
    def scale_clip_(self) -> None:
        stored, used, quantizer = self.stored_weight(), self.pruned_weight(), self.weight_quantizer
        filters = filters_first(stored, self.groups).clone()
        used = None if used is None else filters_first(used, self.groups)
        clipped = scale_clip_(filters, quantizer.spec, quantizer.kernels, used)
        stored.copy_(filters_first(clipped, self.groups))


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` whose weight and input are fake-quantized; see :class:`mmgdrq.Conv2d`."""


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` whose weight and input are fake-quantized; see :class:`mmgdrq.Conv2d`."""


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` whose weight and input are fake-quantized; see :class:`mmgdrq.Conv2d`."""
