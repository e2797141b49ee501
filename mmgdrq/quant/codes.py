"""What a layer keeps of its quantized operands for its backward pass: codes of one byte, or how to quantize again.

``Codes.values()`` is bit for bit what ``fake_quantize_*`` returns, and ``Codes.mask_`` is its gradient.

A byte of an activation of 7 bits or fewer holds ``code - lowest`` and, in its highest bit, whether the element
lay inside the range, so that its gradient passes. 8-bit codes leave no bit over and keep a second byte.
"""

from dataclasses import dataclass
from typing import ClassVar, Optional

import torch
from torch import Tensor

from ..kernels.dispatch import kernels_for
from ..kernels.scratch import dense, take
from .fake_quant import MIN_STEP, clip_activation, clip_bounds, round_to_codes_, step_of
from .ranges.rule import rule_of, weight_range
from .ranges.statistics import power_sums, sum_and_count
from .specs import WeightSpec
from .weights import weight_step

INSIDE = 128
"""Bit of a code that marks an element inside the range."""


class Kept:
    """A quantized operand as its layer keeps it; a subclass is a dataclass that can restore the values."""

    tensors: ClassVar[tuple[str, ...]]
    """Fields that autograd keeps."""

    def values(self, slot: str) -> Tensor:
        """The fake-quantized values, in the scratch memory ``slot``."""
        raise NotImplementedError

    def mask_(self, grad: Tensor) -> Tensor:
        """Set the gradient to zero, in place, where the forward pass clipped; here autograd does that elsewhere."""
        return grad


@dataclass
class Codes(Kept):
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
    tensors = ('stored', 'step', 'inside')

    def values(self, slot: str) -> Tensor:
        stored = self.stored
        result = take(slot, stored, torch.float32)
        if kernels := kernels_for(result):
            kernels.decode(stored, self.step, result, self.lowest, INSIDE - 1 if self.flagged else 255)
            return result
        if self.flagged:
            stored = torch.bitwise_and(stored, INSIDE - 1, out=take('bytes', stored, torch.uint8))
        if self.lowest:
            shifted = take('bytes', self.stored, torch.uint8)
            stored = torch.add(stored, self.lowest % 256, out=shifted).view(torch.int8)  # modulo 256
        return result.copy_(stored).mul_(self.step)

    def mask_(self, grad: Tensor) -> Tensor:
        inside = self.inside
        if inside is None and not self.flagged:
            return grad
        kernels = kernels_for(grad)
        if kernels and grad.stride() == self.stored.stride():
            kernels.mask(grad, self.stored if self.flagged else inside, 7 if self.flagged else 0)
            return grad
        if self.flagged:
            inside = torch.bitwise_right_shift(self.stored, 7, out=take('bytes', self.stored, torch.uint8))
        factor = take('work', inside, torch.float32).copy_(inside)
        return grad.mul_(factor)


@dataclass
class Requantized(Kept):
    """A tensor that the backward pass quantizes again, as it is there anyway.

    That is so for a weight, and for an activation with a learned range, whose gradient needs it.

    Attributes:
        tensor: float, any shape.
        step: float32, positive: one value for all, or one for each entry of the first dimension.
        limits: lowest and highest code.
        offset: of the grid, 0 or 1/2 (midrise).
    """

    tensor: Tensor
    step: Tensor
    limits: tuple[int, int]
    offset: float = 0.0
    tensors = ('tensor', 'step')

    def values(self, slot: str) -> Tensor:
        return _quantize_rows(dense(self.tensor), self.step, self.limits, self.offset, slot)


@dataclass
class Clipped(Kept):
    """An activation that the backward pass clips again.

    Attributes:
        x: float, any shape.
        low, high: scalars of the dtype of ``x``.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    tensors = ('x', 'low', 'high')

    def values(self, slot: str) -> Tensor:
        x = dense(self.x)
        return torch.clamp(x, self.low, self.high, out=take(slot, x, x.dtype))


@dataclass
class Encoded:
    """A fake-quantized operand of a layer.

    Attributes:
        values: float32 or the tensor's dtype; in scratch memory, valid until the next operand of its kind is
            quantized, or ``source``.
        codes: what the backward pass needs; None where there will be none.
        source: the tensor that the gradient belongs to, where that is not the operand of the float layer.
    """

    values: Tensor
    codes: Optional[Kept]
    source: Optional[Tensor] = None


def encode_weight(weight: Tensor, step: Tensor, limits: tuple[int, int], slot: str, offset: float = 0.0) -> Encoded:
    """Fake-quantize a weight; the values are in the scratch memory ``slot``.

    Args:
        weight: shape ``(O, ...)``, any floating dtype.
        step: positive, one value a filter, shaped to broadcast against ``weight``.
        limits: lowest and highest code.
        offset: of the grid, 0 or 1/2 (midrise).
    """
    step = step.contiguous()
    values = _quantize_rows(dense(weight.detach()), step, limits, offset, slot)
    return Encoded(values, Requantized(weight.detach(), step, limits, offset))


def encode_learned(values: Tensor, x: Tensor, step: Tensor, limits: tuple[int, int], offset: float = 0.0) -> Encoded:
    """The result of :func:`~mmgdrq.quant.fake_quantize_learned` as an operand that keeps no copy of it."""
    codes = Requantized(x.detach(), step.detach().contiguous(), limits, offset)
    return Encoded(values.detach(), codes, values)


def encode_clipped(x: Tensor, threshold: Tensor, signed: bool) -> Encoded:
    """The result of :func:`~mmgdrq.quant.clip_activation` as an operand that keeps no copy of it."""
    low, high = clip_bounds(threshold, signed, x.dtype)
    values = clip_activation(x, threshold, signed)
    return Encoded(values.detach(), Clipped(x.detach(), low, high), values)


def _quantize_rows(weight: Tensor, step: Tensor, limits: tuple[int, int], offset: float, slot: str) -> Tensor:
    if kernels := kernels_for(weight):
        values = take(slot, weight, weight.dtype)
        kernels.encode_rows(weight, step, values, limits, offset)
        return values
    values = round_to_codes_(torch.div(weight.float(), step, out=take(slot, weight, torch.float32)), limits, offset)
    return (values.add_(offset) if offset else values).mul_(step)


def encode_weight_by_rule(weight: Tensor, spec: WeightSpec, slot: str) -> Encoded:
    """:func:`encode_weight` with the range that the rule of ``spec`` gives for the present weight."""
    flat = dense(weight.detach())
    kernels = kernels_for(flat)
    if not (kernels and rule_of(spec).is_mean and spec.group_size == 1):
        step = weight_step(flat, weight_range(flat, spec), spec)
        return encode_weight(weight, step, spec.code_limits, slot, spec.offset)
    values = take(slot, flat, flat.dtype)
    step = torch.empty(flat.shape[0], *[1] * (flat.dim() - 1), dtype=torch.float32, device=flat.device)
    kernels.encode_mean_rows(flat, step, values, spec.code_limits, spec.offset, spec.multiplier, spec.levels, MIN_STEP)
    return Encoded(values, Requantized(weight.detach(), step, spec.code_limits, spec.offset))


def encode_activation(
    x: Tensor,
    threshold: Tensor,
    levels: int,
    limits: tuple[int, int],
    slot: str,
    keep: bool = True,
    masked: bool = True,
    statistic: Optional[Tensor] = None,
    powers: bool = False,
) -> Encoded:
    """Fake-quantize an activation; the values are in the scratch memory ``slot``.

    Args:
        x: any shape, any floating dtype.
        threshold: scalar T.
        levels: steps between 0 and T.
        limits: lowest and highest code; a lowest code of 0 clips to [0, T], else to [-T, T].
        slot: scratch memory for the values.
        keep: whether there will be a backward pass.
        masked: whether it will ask for the gradient of ``x``.
        statistic: float64, shape ``(2,)``; receives :func:`~mmgdrq.quant.ranges.statistics.sum_and_count` of ``x``,
            or its :func:`~mmgdrq.quant.ranges.statistics.power_sums`.
        powers: which of them.
    """
    x = dense(x.detach())
    if kernels := kernels_for(x):
        return _encode_by(kernels, x, threshold, levels, limits, slot, keep, masked, statistic, powers)
    x = x.float()
    values = take(slot, x, torch.float32)
    if statistic is not None:
        statistic.copy_((power_sums if powers else sum_and_count)(x))
    step = step_of(threshold, levels)
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


def _encode_by(kernels, x, threshold, levels, limits, slot, keep, masked, statistic, powers) -> Encoded:
    low, high = limits
    values = take(slot, x, x.dtype)
    flagged = masked and high - low < INSIDE
    stored = torch.empty_like(x, dtype=torch.uint8) if keep else None
    inside = torch.empty_like(x, dtype=torch.uint8) if keep and masked and not flagged else None
    step = threshold.new_empty(()) if keep else None
    rule = (threshold, levels, MIN_STEP, limits, flagged, powers)
    kernels.encode(x, values, stored, inside, statistic, step, *rule)
    return Encoded(values, Codes(stored, step, low, inside, flagged) if keep else None)


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
