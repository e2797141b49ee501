"""Folded layers: integer weights, integer inputs; the scale sits in BN or in one factor a filter."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.walk import all_modules
from ...quant import quantize
from ...quantized_model.replaced_layers import remember_layers
from ...quantized_model.state import FROZEN, STAGE, is_root
from .affine_inputs import GRID, AffineCodes


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


class RoundedInput(CodeQuantizer):
    """Rounds an input to its grid: codes times step, written in operators that every exporter knows."""

    def forward(self, x: Tensor) -> Tensor:
        return (x / self.step).round().clamp(*self.limits) * self.step


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
STORED_TYPES = {STAGE: torch.int64, 'signed': torch.bool, 'initialized': torch.bool}
"""Buffers of quantized models that averages need as floats -> what they are in files of deployed models."""
STORED = 'stored'
"""Kind of a layer without a folded form: its forward pass stays as it is, with the weight from integer codes."""


class StoredWeight(nn.Module):
    """In the place of a weight quantizer: the quantized weight, whatever the float one is.

    Args:
        shape: of the filters, ``(O, ...)``.

    Buffers: integer ``codes`` held in float32, and one ``scale`` a filter.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer('codes', torch.zeros(tuple(shape)))
        self.register_buffer('scale', torch.ones(shape[0]))

    def forward(self, weight: Tensor, encode: bool = False) -> Tensor:
        return rescale(self.codes, self.scale, None, channel=0).to(weight.dtype)


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
        layer: a quantized layer of the right shape.
        entry: ``kind``, a key of :data:`FOLDED` or :data:`STORED`; for the former
            ``input`` (lowest and highest input code, or None for a float input); ``scaled``
            (whether the layer itself carries one scale a filter); ``offset`` (whether it carries one
            additive term a filter). Buffers ``scale`` and ``offset`` have shape ``(O,)``. For the latter
            ``shape`` of the filters, and ``weight_bits``.
    """
    if entry['kind'] == STORED:
        if entry['weight_bits'] <= 8:
            layer.weight_quantizer = StoredWeight(entry['shape']).to(layer.stored_weight().device)
        return
    for name in ('weight_quantizer', 'activation_quantizer'):
        layer._modules.pop(name, None)
    layer.__class__ = FOLDED[entry['kind']]
    filters, device = layer.weight.shape[0], layer.weight.device
    # a Parameter of its own: the old one may be tied to other layers
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    layer.register_parameter('bias', None)
    layer.input_codes = _input_codes(entry)
    layer.register_buffer('scale', torch.ones(filters) if entry['scaled'] else None)
    layer.register_buffer('offset', torch.zeros(filters) if entry['offset'] else None)
    layer.to(device)


def _input_codes(entry: dict) -> nn.Module:
    if GRID in entry:
        return AffineCodes(entry['input_bits'], *entry[GRID])
    return CodeQuantizer(*entry['input']) if entry['input'] else nn.Identity()


def become_folded_model(model: nn.Module, entries: dict[str, dict[str, Any]]) -> None:
    """Note at the root of a model what its layers became; a quantized model inside it no longer expects them."""
    model.gdrq_folded = entries
    for module in all_modules(model):
        if is_root(module):
            remember_layers(module)
            module._buffers.pop(FROZEN, None)  # it does not train
        for name, dtype in STORED_TYPES.items():
            if module._buffers.get(name) is not None:
                module._buffers[name] = module._buffers[name].to(dtype)


def unread_parameters(folded: nn.Module) -> list[str]:
    """Names of the float parameters that no forward pass reads any more: those behind stored weights."""
    layers = [m for m in all_modules(folded) if isinstance(getattr(m, 'weight_quantizer', None), StoredWeight)]
    parameters = {id(layer.stored_weight()): layer.stored_weight() for layer in layers}
    readers = {id(layer) for layer in layers} | {id(owner) for layer in layers for owner in getattr(layer, 'owner', ())}
    for module in all_modules(folded):
        if id(module) not in readers:
            for parameter in module._parameters.values():
                parameters.pop(id(parameter), None)
    return [name for name, p in folded.named_parameters(remove_duplicate=False) if id(p) in parameters]
