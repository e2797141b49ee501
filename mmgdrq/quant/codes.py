"""Quantized tensors as one byte an element: what a layer keeps for its backward pass.

``Codes.values()`` is bit for bit what ``fake_quantize_*`` returns, and ``Codes.mask_`` is its gradient.

A byte of an activation of 7 bits or fewer holds ``code - lowest`` and, in its highest bit, whether the element
lay inside the range, so that its gradient passes. 8-bit codes leave no bit over and keep a second byte.
"""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from .scratch import dense, take

INSIDE = 128
"""Bit of a code that marks an element inside the range."""


@dataclass
class Codes:
    """A quantized tensor.

    Attributes:
        stored: uint8, ``code - lowest``, plus ``INSIDE`` where ``flagged``.
        step: float32, broadcasts against ``stored``.
        lowest: lowest code.
        inside: uint8 of 0 and 1, where no bit is left for it in ``stored``.
        flagged: whether ``stored`` carries ``INSIDE``.
    """

    stored: Tensor
    step: Tensor
    lowest: int
    inside: Optional[Tensor] = None
    flagged: bool = False

    def values(self, slot: str) -> Tensor:
        """Dequantize, float32, into the scratch memory ``slot``."""
        result = take(slot, self.stored, torch.float32)
        stored = self.stored
        if self.flagged:
            stored = torch.bitwise_and(stored, INSIDE - 1, out=take('bytes', stored, torch.uint8))
        if self.lowest:
            shifted = take('bytes', self.stored, torch.uint8)
            stored = torch.add(stored, self.lowest % 256, out=shifted).view(torch.int8)  # modulo 256
        return result.copy_(stored).mul_(self.step)

    def mask_(self, grad: Tensor) -> Tensor:
        """Set the gradient to zero, in place, where the forward pass clipped."""
        inside = self.inside
        if self.flagged:
            inside = torch.bitwise_right_shift(self.stored, 7, out=take('bytes', self.stored, torch.uint8))
        if inside is None:
            return grad
        factor = take('work', inside, torch.float32).copy_(inside)
        return grad.mul_(factor)


@dataclass
class Encoded:
    """A fake-quantized operand of a layer.

    Attributes:
        values: float32, in scratch memory: valid until the next operand of its kind is quantized.
        codes: what the backward pass needs; None where there will be none.
    """

    values: Tensor
    codes: Optional[Codes]


def encode_weight(weight: Tensor, step: Tensor, limits: tuple[int, int], slot: str) -> Encoded:
    """Fake-quantize a weight; the values are in the scratch memory ``slot``.

    Args:
        weight: shape ``(O, ...)``, any floating dtype.
        step: positive, broadcasts against ``weight``.
        limits: lowest and highest code.
    """
    weight = dense(weight.detach())
    values = take(slot, weight, torch.float32)
    torch.div(weight.float(), step, out=values).round_().clamp_(*limits)
    stored = _to_bytes(values, limits)
    return Encoded(values.mul_(step), Codes(stored, step, limits[0]))


def encode_activation(
    x: Tensor,
    threshold: Tensor,
    step: Tensor,
    limits: tuple[int, int],
    slot: str,
    keep: bool = True,
    masked: bool = True,
) -> Encoded:
    """Fake-quantize an activation; the values are in the scratch memory ``slot``.

    Args:
        x: any shape, any floating dtype.
        threshold: scalar T.
        step: scalar, ``step_of(threshold, levels)``.
        limits: lowest and highest code; a lowest code of 0 clips to [0, T], else to [-T, T].
        slot: scratch memory for the values.
        keep: whether there will be a backward pass.
        masked: whether it will ask for the gradient of ``x``.
    """
    x = dense(x.detach()).float()
    values = take(slot, x, torch.float32)
    torch.div(x, step, out=values).round_().clamp_(*limits)
    if not keep:
        return Encoded(values.mul_(step), None)
    codes = Codes(_to_bytes(values, limits), step, limits[0])
    values.mul_(step)
    if masked:
        inside = _inside(x, threshold, limits)
        if limits[1] - limits[0] < INSIDE:
            codes.stored.add_(inside.mul_(INSIDE))
            codes.flagged = True
        else:
            codes.inside = inside.clone()
    return Encoded(values, codes)


def _to_bytes(codes: Tensor, limits: tuple[int, int]) -> Tensor:
    """``codes - lowest`` as uint8. torch converts to int8 twice as fast as to uint8."""
    low, high = limits
    stored = torch.empty_like(codes, dtype=torch.uint8)
    if high > 127:
        return stored.copy_(codes)
    stored.view(torch.int8).copy_(codes)
    return stored.sub_(low % 256) if low else stored


def _inside(x: Tensor, threshold: Tensor, limits: tuple[int, int]) -> Tensor:
    """1 where ``x`` lies inside the range, else 0, as uint8. Arithmetic is vectorized, comparing is not."""
    clipped = take('work', x, torch.float32)
    high = threshold.item() if x.device.type == 'cpu' else threshold
    torch.clamp(x, -high if limits[0] else high * 0, high, out=clipped)
    outside = take('bytes', x, torch.uint8)
    outside.view(torch.bool).copy_(clipped.sub_(x))
    return outside.bitwise_xor_(1)
