"""Quantized transposed convolutions; their weights have shape ``(C_in, C_out / groups, ...)``."""

import torch
from torch import Tensor, nn

from ..quant import scale_clip_
from .base import ActivationConfig, WeightConfig, attach_quantizers
from .lending import Lending


def filters_first(weight: Tensor, groups: int) -> Tensor:
    """Arrange a weight of shape ``(C_in, C_out / groups, ...)`` as ``(C_out, C_in / groups, ...)``.

    >>> filters_first(torch.zeros(4, 3, 2, 2), groups=2).shape
    torch.Size([6, 2, 2, 2])
    """
    rows = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return rows.transpose(1, 2).flatten(0, 1)


class _ConvTranspose(Lending):
    """One range a group of output filters, as for an ordinary convolution."""

    def __init__(self, *args, weight: WeightConfig = None, activation: ActivationConfig = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        attach_quantizers(self, weight, activation)

    def filters(self) -> Tensor:
        return filters_first(self.weight, self.groups)

    def lendable(self) -> Tensor:
        # swapping the two channel dimensions within each group again gives the stored order
        return filters_first(super().lendable(), self.groups)

    @torch.no_grad()
    def scale_clip_(self) -> None:
        clipped = scale_clip_(self.filters().clone(), self.weight_quantizer.spec)
        self.weight.copy_(filters_first(clipped, self.groups))


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` whose weight and input are fake-quantized; see :class:`mmgdrq.Conv2d`."""


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` whose weight and input are fake-quantized; see :class:`mmgdrq.Conv2d`."""


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` whose weight and input are fake-quantized; see :class:`mmgdrq.Conv2d`."""
