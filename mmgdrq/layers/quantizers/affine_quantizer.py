"""The quantizer of an activation with a zero point, for the whole tensor or for each channel."""

from typing import Union

import torch
from torch import Tensor

from ...errors import QuantizationError
from ...quant import ActivationSpec
from ...quant.affine import affine_bounds, affine_grid, clip_affine, fake_quantize_affine
from .quantizer import Quantizer, refuse_symbolic
from .state import CLIP, FLOAT

AFFINE = 1
"""What the buffer ``format`` holds of the grid."""


class AffineQuantizer(Quantizer):
    """Fake-quantizes the input of one layer on an affine grid.

    Its range comes from :func:`mmgdrq.calibrate` and stays as it is while the weights train.

    Buffers: ``scale`` and ``zero_point``, shape ``()`` or ``(C,)``; the flag ``initialized``, as 0.0 or 1.0.

    Args:
        spec: what to quantize to.
        channels: number of channels that have a grid each; 0: one grid for all.
        trailing: dimensions behind that of the channels.
    """

    def __init__(self, spec: ActivationSpec, channels: int = 0, trailing: int = 2, device=None) -> None:
        super().__init__(spec, [spec.bits, AFFINE, channels])
        self.channels, self.trailing = channels, trailing
        shape = (channels,) if channels else ()
        self.register_buffer('scale', torch.ones(shape, device=device))
        self.register_buffer('zero_point', torch.zeros(shape, device=device))
        self.register_buffer('initialized', torch.tensor(0.0, device=device))

    @property
    def mode(self) -> str:
        """What it does in the present stage."""
        return self.state.activation_mode()

    def forward(self, x: Tensor, encode: bool = False) -> Tensor:
        """Return the fake-quantized (or clipped) input, shape and dtype of ``x``.

        Args:
            x: any shape; with a grid for each channel, ``(..., C, *trailing)``.
            encode: accepted, as other quantizers do; the values are returned all the same.

        Raises:
            QuantizationError: the range was never set.
        """
        refuse_symbolic(x)
        mode = self.mode
        if mode == FLOAT or x.numel() == 0:
            return x
        if not self.is_ready():
            raise QuantizationError(
                f'{self.layer_name or "a quantized layer"}: its affine input range was never set. It comes from a '
                'calibration, by mmgdrq.calibrate(model, batches) or tools/calibrate.py; train from its checkpoint'
            )
        quantize = clip_affine if mode == CLIP else fake_quantize_affine
        return quantize(x, *self.grid(), self.spec.bits)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, in a shape that broadcasts against the input."""
        shape = (-1, *[1] * self.trailing) if self.channels else ()
        return self.scale.reshape(shape), self.zero_point.reshape(shape)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of the grid, shape ``()`` or ``(C,)``."""
        return affine_bounds(self.scale, self.zero_point, self.spec.bits)

    def is_ready(self) -> bool:
        """Whether there is a range; asks the device only until there is one."""
        if not self._ready:
            self.read_flags(float(self.initialized))
        return self._ready

    @torch.no_grad()
    def read_flags(self, initialized: float) -> None:
        """Take over what the buffer ``initialized`` holds now; in an average some models may not have had a range."""
        self._ready = initialized > 0.999
        self.zero_point.round_()

    @torch.no_grad()
    def set_range(self, low: Union[Tensor, float], high: Union[Tensor, float]) -> None:
        """Set the grid so that it reaches from ``low`` to ``high``, shape ``()`` or ``(C,)``, and holds zero."""
        lowest, highest = (torch.as_tensor(end, device=self.scale.device).expand_as(self.scale) for end in (low, high))
        if self.spec.signed is False:
            lowest = torch.zeros_like(highest)
        scale, zero_point = affine_grid(lowest, highest, self.spec.bits, self.spec.signed is True)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.initialized.fill_(1.0)
        self._ready = True

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._ready = False

    @staticmethod
    def describe(layout: Tensor) -> str:
        bits, *grid = layout.tolist()
        channels = f', {grid[1]:.0f} channels' if len(grid) > 1 and grid[1] else ''
        return f'bits={bits:.0f}{", affine" if grid else ""}{channels}'
