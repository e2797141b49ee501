"""A quantized block as an engine sees it: input codes, integer weights, one scale and one bias a filter.

Profiles say which engine. They differ in how it rounds (:mod:`.rounding`) and in its nodes (:mod:`.nodes`).
"""

from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ExportError
from ...quant import quantize
from ..folding.folded_layers import FoldedLinear
from .rounding import openvino_codes, unit_of_bias, without_products, written_scale

PROFILES = ('openvino', 'onnxruntime', 'tensorrt')
INT8_MAX = 127
SIGNED_ZERO = 128
"""Code of 0 where signed values are held in uint8."""


@dataclass(frozen=True)
class Grid:
    """The 8-bit grid of a result: ``scale * (code - zero)``, codes of uint8."""

    scale: float
    zero: int = 0

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest ``code - zero``."""
        return -self.zero, 255 - self.zero


@dataclass(frozen=True, eq=False)
class Block:
    """One folded layer with its BN.

    Attributes:
        name: of the layer.
        weight: integer codes as float32, shape ``(O, ...)``.
        bits, lowest, stride: how the integers are stored, see :func:`mmgdrq.quant.pack`; 32 bits: a float weight.
        scale, offset: shape ``(O,)``; the result is ``scale * layer(input codes) + offset``.
        step: of the input; None: a float input.
        limits: of the input codes.
        geometry: stride, padding, dilation and groups of a convolution; None: linear.
        profile: one of :data:`PROFILES`.
    """

    name: str
    weight: Tensor
    bits: int
    lowest: int
    stride: int
    scale: Tensor
    offset: Tensor
    step: Optional[Tensor]
    limits: Optional[tuple[int, int]]
    geometry: Optional[tuple[Any, ...]]
    profile: str

    @property
    def is_integer(self) -> bool:
        """Whether both the input and the weight are codes of at most 8 bits."""
        return self.limits is not None and self.bits <= 8

    @property
    def unit(self) -> Tensor:
        """What one unit of ``input code * weight code`` is worth, shape ``(O,)``; of bias alone in a filter without."""
        return torch.where(self.scale == 0, unit_of_bias(self.offset), self.scale)

    def encode(self, x: Tensor, alone: bool = False) -> Tensor:
        """Input codes, as the engine rounds; ``alone`` as in :func:`~mmgdrq.deploy.engines.rounding.openvino_codes`."""
        if self.limits is None:
            return x
        if self.profile == 'openvino':
            return openvino_codes(x, self.step, self.limits, alone)
        return quantize(x, self.step, self.limits)

    def multiply(self, codes: Tensor) -> Tensor:
        """The layer without scale and offset."""
        if self.geometry is None:
            return F.linear(codes, self.weight)
        return F.conv2d(codes, self.weight, None, *self.geometry)

    def per_filter(self, values: Tensor) -> Tensor:
        """Values of shape ``(O,)`` so that they broadcast against a result."""
        return values if self.geometry is None else values.reshape(-1, 1, 1)

    def rescale(self, total: Tensor, offset: Tensor) -> Tensor:
        """``scale * total + offset``, with the scale that the engine finds in the graph."""
        scale = self.scale
        if self.profile == 'openvino' and self.is_integer:
            scale = torch.where(scale == 0, 0.0, self.step * written_scale(self.unit, self.step))
        return total * self.per_filter(scale) + self.per_filter(offset)


def refinement_of(lowest: int) -> int:
    """Largest factor by which weight codes from ``lowest`` on still fit int8."""
    return max(INT8_MAX // -lowest, 1)


def block_of(name: str, layer: nn.Module, entry: dict[str, Any], profile: str) -> Block:
    """The block of a layer of :func:`~mmgdrq.deploy.folding.merge_batchnorm.merge_norms`.

    Args:
        name: of the layer.
        layer: a folded layer that carries its BN.
        entry: its manifest entry.
        profile: one of :data:`PROFILES`.

    Raises:
        ExportError: a convolution that does not pad with as many zeros on one side as on the other.
    """
    linear = isinstance(layer, FoldedLinear)
    geometry = None if linear else (layer.stride, _padding_of(name, layer), layer.dilation, layer.groups)
    block = Block(
        name=name,
        weight=layer.weight.detach(),
        bits=entry['weight_bits'],
        lowest=entry['weight_lowest'],
        stride=entry['weight_stride'],
        scale=_scale_of(layer, entry, profile),
        offset=layer.offset,
        step=layer.input_codes.step if entry['input'] else None,
        limits=tuple(entry['input']) if entry['input'] else None,
        geometry=geometry,
        profile=profile,
    )
    return _in_int8(block) if profile == 'tensorrt' else block


def _padding_of(name: str, layer: nn.Conv2d) -> tuple[int, ...]:
    """Zeros on each side, a number for each dimension."""
    totals = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size)]
    if layer.padding_mode == 'zeros':
        if layer.padding == 'valid':
            return (0,) * len(totals)
        if layer.padding != 'same':
            return layer.padding
        if not any(total % 2 for total in totals):
            return tuple(total // 2 for total in totals)
    raise ExportError(
        f'export: {name} has padding={layer.padding!r} and padding_mode={layer.padding_mode!r} with a kernel of '
        f'{layer.kernel_size}; expected a number of zeros on each side. Keep it in float with a rule, '
        'dict(pattern=..., skip=True)'
    )


def _scale_of(layer: nn.Module, entry: dict[str, Any], profile: str) -> Tensor:
    if profile != 'onnxruntime' or not entry['input'] or entry['weight_bits'] > 8:  # they have float biases
        return layer.scale
    alone = without_products(layer.scale, layer.offset, refinement_of(entry['weight_lowest']))
    return torch.where(alone, 0.0, layer.scale)


def _in_int8(block: Block) -> Block:
    """The block with input codes of at most 127: an 8-bit unsigned grid gets half as many steps."""
    if block.limits is None or block.limits[1] <= INT8_MAX:
        return block
    coarser = block.limits[1] / INT8_MAX
    return replace(block, step=block.step * coarser, scale=block.scale * coarser, limits=(0, INT8_MAX))
