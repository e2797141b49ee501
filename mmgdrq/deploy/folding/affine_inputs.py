"""Inputs with a zero point in folded layers: codes minus zero point are integers, so that all stays exact."""

from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ...errors import ExportError
from ...layers import AffineQuantizer
from ...quant.affine import affine_integers


class AffineCodes(nn.Module):
    """Turns an input into integers ``clip(round(x / scale) + zero_point, 0, top) - zero_point``, held in float32.

    Args:
        bits: of the codes.
        channels: number of channels that have a grid each; 0: one grid for all.
        trailing: dimensions behind that of the channels.

    Buffers: ``scale`` and ``zero_point``, shape ``()`` or ``(C,)``.
    """

    def __init__(self, bits: int, channels: int, trailing: int) -> None:
        super().__init__()
        self.bits, self.shape = bits, (-1, *[1] * trailing) if channels else ()
        self.register_buffer('scale', torch.ones((channels,) if channels else ()))
        self.register_buffer('zero_point', torch.zeros((channels,) if channels else ()))

    def forward(self, x: Tensor) -> Tensor:
        return affine_integers(x, self.scale.reshape(self.shape), self.zero_point.reshape(self.shape), self.bits)

    def copy_(self, quantizer: AffineQuantizer) -> None:
        """Take the grid of a quantizer."""
        self.scale.copy_(quantizer.scale)
        self.zero_point.copy_(quantizer.zero_point)

    def extra_repr(self) -> str:
        return f'bits={self.bits}, shape={tuple(self.scale.shape)}'


def affine_grid(layer: nn.Module) -> Optional[tuple[int, int]]:
    """Channels that have a grid each, and dimensions behind them; None: no affine input, or its zero point is 0."""
    quantizer = layer.activation_quantizer
    if not isinstance(quantizer, AffineQuantizer) or is_unsigned(quantizer):
        return None
    return quantizer.channels, quantizer.trailing


def is_unsigned(quantizer: AffineQuantizer) -> bool:
    """Whether the grid is one for all channels that begins at zero, as that of an unsigned input does."""
    return not quantizer.channels and not bool(quantizer.zero_point)


def step_per_filter(quantizer: AffineQuantizer, filters: int) -> Tensor:
    """What one unit of the input is worth to each filter, shape ``()`` or ``(O,)``."""
    if not quantizer.channels:
        return quantizer.scale
    return quantizer.scale.repeat_interleave(filters // quantizer.channels)


def refuse_affine(entries: Mapping[str, Any]) -> None:
    """Raise where a layer reads an affine input, which no graph is written for.

    Raises:
        ExportError: names the layers.
    """
    affine = [name for name, entry in entries.items() if entry.input_grid is not None]
    if affine:
        raise ExportError(
            f"export: {affine[0]} has an affine input range (activation=dict(grid='affine'); {len(affine)} such "
            'layers), which graphs for engines do not have yet. The folded model itself runs in torch; for an engine '
            "calibrate with activation=dict(grid='symmetric', range='minmax')"
        )
