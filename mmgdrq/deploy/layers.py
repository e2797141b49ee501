"""Folded layers: integer weights, integer inputs; the scale sits in BN or in one factor a filter."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..quant import quantize


class CodeQuantizer(nn.Module):
    """Turns an input into integer codes ``clip(round(x / step))``, held in float32.

    Args:
        lowest, highest: the codes' limits.

    Buffers: ``step``, scalar.
    """

    def __init__(self, lowest: int, highest: int) -> None:
        super().__init__()
        self.limits = (lowest, highest)
        self.register_buffer('step', torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return quantize(x, self.step, self.limits)

    def extra_repr(self) -> str:
        return f'limits={self.limits}'


class FoldedConv2d(nn.Conv2d):
    """A convolution with integer weights and inputs; see :func:`become_folded` for its other buffers."""

    def forward(self, input: Tensor) -> Tensor:
        y = self._conv_forward(self.input_codes(input), self.weight, None)
        return rescale(y, self.scale, self.offset, channel=y.dim() - 3)


class FoldedLinear(nn.Linear):
    """A linear layer with integer weights and inputs; see :func:`become_folded` for its other buffers."""

    def forward(self, input: Tensor) -> Tensor:
        y = F.linear(self.input_codes(input), self.weight)
        return rescale(y, self.scale, self.offset, channel=y.dim() - 1)


FOLDED = {'conv': FoldedConv2d, 'linear': FoldedLinear}


def rescale(y: Tensor, scale: Optional[Tensor], offset: Optional[Tensor], channel: int) -> Tensor:
    """``y * scale + offset`` along dimension ``channel``; None leaves a part out."""
    shape = [1] * y.dim()
    shape[channel] = -1
    if scale is not None:
        y = y * scale.reshape(shape)
    return y if offset is None else y + offset.reshape(shape)


def become_folded(layer: nn.Module, entry: dict) -> None:
    """Turn a quantized (or float) layer into the folded form that a manifest entry describes, in place.

    Args:
        layer: an ``nn.Conv2d`` or ``nn.Linear`` of the right shape.
        entry: ``kind``; ``input`` (lowest and highest input code, or None for a float input); ``scaled``
            (whether the layer itself carries one scale a filter); ``offset`` (whether it carries one
            additive term a filter). Buffers ``scale`` and ``offset`` have shape ``(O,)``.
    """
    for name in ('weight_quantizer', 'activation_quantizer'):
        layer._modules.pop(name, None)
    layer.__class__ = FOLDED[entry['kind']]
    filters, device = layer.weight.shape[0], layer.weight.device
    # a Parameter of its own: the old one may be tied to other layers
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    layer.register_parameter('bias', None)
    layer.input_codes = CodeQuantizer(*entry['input']) if entry['input'] else nn.Identity()
    layer.register_buffer('scale', torch.ones(filters) if entry['scaled'] else None)
    layer.register_buffer('offset', torch.zeros(filters) if entry['offset'] else None)
    layer.to(device)
