"""Describe a quantized block: input codes, integer weights, one scale and one bias per filter.

A block says nothing about an engine; what each engine makes of it is in the file of that engine.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ExportError
from ..folding.folded_layers import FoldedLayer, FoldedLinear

INT8_MAX = 127
SIGNED_ZERO = 128
"""Code of 0 where signed values are held in uint8."""


@dataclass(frozen=True)
class Grid:
    """The 8-bit grid of an output: ``scale * (code - zero)``, codes of uint8."""

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
        scale, offset: shape ``(O,)``; the output is ``scale * layer(input codes) + offset``.
        step: of the input; None: a float input.
        limits: of the input codes.
        geometry: stride, padding, dilation and groups of a convolution; None: linear.
    """

    name: str
    weight: Tensor
    bits: int
    lowest: int
    stride: int
    scale: Tensor
    offset: Tensor
    step: Any  # a tensor, a pair, a tuple; None says what kind of block it is, and who asks for them knows the kind
    limits: Any
    geometry: Any

    @property
    def is_integer(self) -> bool:
        """Whether both the input and the weight are codes of at most 8 bits."""
        return self.limits is not None and self.bits <= 8

    @property
    def unit(self) -> Tensor:
        """What one unit of ``input code * weight code`` is worth, shape ``(O,)``; of bias alone where it is nothing."""
        return torch.where(self.scale == 0, unit_of_bias(self.offset), self.scale)

    def multiply(self, codes: Tensor) -> Tensor:
        """The layer without scale and offset."""
        if self.geometry is None:
            return F.linear(codes, self.weight)
        return F.conv2d(codes, self.weight, None, *self.geometry)

    def per_filter(self, values: Tensor) -> Tensor:
        """Values of shape ``(O,)`` so that they broadcast against an output."""
        return values if self.geometry is None else values.reshape(-1, 1, 1)


def unit_of_bias(offset: Tensor) -> Tensor:
    """Unit of the bias of filters without scale: 2^-20 of it; 1 where it is 0."""
    return torch.where(offset == 0, torch.ones_like(offset), offset.abs() * 2**-20)


def written_scale(unit: Tensor, step: Tensor, refinement: int = 1) -> Tensor:
    """Scale of the weight codes in a graph, shape ``(O,)``, from what a unit of input times weight code is worth."""
    return (unit / step / refinement).float()


def block_of(name: str, layer: nn.Module, entry: FoldedLayer) -> Block:
    """Describe a layer of :func:`~mmgdrq.deploy.folding.merge_batchnorm.merge_norms`.

    Args:
        name: of the layer.
        layer: a folded layer that carries its BN.
        entry: what it became.

    Raises:
        ExportError: a convolution that does not pad with as many zeros on one side as on the other.
    """
    linear = isinstance(layer, FoldedLinear)
    return Block(
        name=name,
        weight=layer.weight.detach(),
        bits=entry.weight_bits,
        lowest=entry.weight_lowest,
        stride=entry.weight_stride,
        scale=layer.scale,
        offset=layer.offset,
        step=layer.input_codes.step if entry.input else None,
        limits=entry.input,
        geometry=None if linear else (layer.stride, _padding_of(name, layer), layer.dilation, layer.groups),
    )


def _padding_of(name: str, layer: Any) -> tuple[int, ...]:
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
