"""What a layer keeps of its quantized operands for its backward pass: codes of one byte, or how to quantize again.

``Codes.values()`` is bit for bit what ``fake_quantize_*`` returns, and ``Codes.mask_`` is its gradient.

A byte of an activation of 7 bits or fewer holds ``code - lowest`` and, in its highest bit, whether the element
lay inside the range, so that its gradient passes. 8-bit codes leave no bit over and keep a second byte.
"""

from dataclasses import dataclass
from typing import ClassVar, Optional

import torch
from torch import Tensor

from ..kernels.dispatch import operators
from ..kernels.reference import INSIDE
from ..kernels.scratch import dense, take
from .fake_quant import MIN_STEP, clip_activation, clip_bounds
from .ranges.rule import rule_of
from .specs import WeightSpec
from .weights import weight_step


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
        kernels: whether the backward pass uses kernels.
    """

    stored: Tensor
    step: Tensor
    lowest: int
    inside: Optional[Tensor] = None
    flagged: bool = False
    kernels: bool = True
    tensors = ('stored', 'step', 'inside')

    def values(self, slot: str) -> Tensor:
        result = take(slot, self.stored, torch.float32)
        bits = INSIDE - 1 if self.flagged else 255
        operators(self.kernels).decode(self.stored, self.step, result, self.lowest, bits)
        return result

    def mask_(self, grad: Tensor) -> Tensor:
        if self.flagged:
            operators(self.kernels).mask(grad, self.stored, 7)
        elif self.inside is not None:
            operators(self.kernels).mask(grad, self.inside, 0)
        return grad


@dataclass
class Requantized(Kept):
    """A tensor that the backward pass quantizes again, as it is there anyway.

    That is so for a weight, and for an activation with a learned range, whose gradient needs it.

    Attributes:
        tensor: float, any shape.
        step: float32, positive: one value for all, or one for each entry of the first dimension.
        limits: lowest and highest code.
        offset: of the grid, 0 or 1/2 (midrise).
        kernels: whether the backward pass uses kernels.
    """

    tensor: Tensor
    step: Tensor
    limits: tuple[int, int]
    offset: float = 0.0
    kernels: bool = True
    tensors = ('tensor', 'step')

    def values(self, slot: str) -> Tensor:
        step = self.step.contiguous()
        return _quantize_rows(dense(self.tensor), step, self.limits, self.offset, slot, self.kernels)


@dataclass
class Learned(Requantized):
    """A tensor with a learned range.

    Attributes:
        grad_scale: factor on the gradient of the step.
    """

    grad_scale: float = 1.0

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Those of ``tensor`` and ``step``, from the gradient of the values."""
        rule = (self.tensor, grad, self.step, *self.limits, self.offset)
        grad_x, grad_step = operators(self.kernels).learned_gradients(*rule)
        return grad_x, grad_step * self.grad_scale


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
        step: a learned step, which has a gradient too.
    """

    values: Tensor
    codes: Optional[Kept]
    source: Optional[Tensor] = None
    step: Optional[Tensor] = None


def encode_weight(
    weight: Tensor, step: Tensor, limits: tuple[int, int], slot: str, offset: float = 0.0, kernels: bool = True
) -> Encoded:
    """Fake-quantize a weight; the values are in the scratch memory ``slot``.

    Args:
        weight: shape ``(O, ...)``, any floating dtype.
        step: positive, one value per filter, shaped to broadcast against ``weight``.
        limits: lowest and highest code.
        offset: of the grid, 0 or 1/2 (midrise).
        kernels: whether kernels may be used.
    """
    step = step.detach().contiguous()
    values = _quantize_rows(dense(weight.detach()), step, limits, offset, slot, kernels)
    return Encoded(values, Requantized(weight.detach(), step, limits, offset, kernels))


def encode_learned(
    x: Tensor,
    step: Tensor,
    limits: tuple[int, int],
    grad_scale: float,
    slot: str,
    offset: float = 0.0,
    kernels: bool = True,
) -> Encoded:
    """:func:`~mmgdrq.quant.fake_quantize_learned` as an operand; the values are in the scratch memory ``slot``.

    Args:
        x: any shape, any floating dtype.
        step: positive, broadcasts against ``x``; receives the LSQ gradient.
        limits: lowest and highest code.
        grad_scale: factor on the gradient of the step.
        slot: scratch memory for the values.
        offset: of the grid, 0 or 1/2 (midrise).
        kernels: whether kernels may be used.
    """
    codes = Learned(x.detach(), step.detach(), limits, offset, kernels, grad_scale)
    return Encoded(codes.values(slot), codes, step=step)


def encode_clipped(x: Tensor, threshold: Tensor, signed: bool) -> Encoded:
    """The result of :func:`~mmgdrq.quant.clip_activation` as an operand that keeps no copy of it."""
    low, high = clip_bounds(threshold, signed, x.dtype)
    values = clip_activation(x, threshold, signed)
    return Encoded(values.detach(), Clipped(x.detach(), low, high), values)


def _quantize_rows(x: Tensor, step: Tensor, limits: tuple[int, int], offset: float, slot: str, kernels: bool) -> Tensor:
    values = take(slot, x, x.dtype)
    operators(kernels).encode_rows(x, step, values, *limits, offset)
    return values


def encode_weight_by_rule(weight: Tensor, spec: WeightSpec, slot: str, kernels: bool = True) -> Encoded:
    """:func:`encode_weight` with the range that the rule of ``spec`` gives for the present weight."""
    flat = dense(weight.detach())
    rule = rule_of(spec, kernels)
    if not (rule.is_mean and spec.group_size == 1):
        step = weight_step(flat, rule.of_weight(flat, spec), spec)
        return encode_weight(weight, step, spec.code_limits, slot, spec.offset, kernels)
    values = take(slot, flat, flat.dtype)
    step = torch.empty(flat.shape[0], *[1] * (flat.dim() - 1), dtype=torch.float32, device=flat.device)
    numbers = (*spec.code_limits, spec.offset, spec.multiplier, spec.levels, MIN_STEP)
    operators(kernels).encode_mean_rows(flat, step, values, *numbers)
    return Encoded(values, Requantized(weight.detach(), step, spec.code_limits, spec.offset, kernels))


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
    kernels: bool = True,
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
        statistic: float64, shape ``(2,)``; receives :func:`~mmgdrq.kernels.reference.sum_and_count` of ``x``,
            or its :func:`~mmgdrq.kernels.reference.power_sums`.
        powers: which of them.
        kernels: whether kernels may be used.
    """
    x, (low, high) = dense(x.detach()), limits
    values = take(slot, x, x.dtype)
    flagged = masked and high - low < INSIDE
    stored = torch.empty_like(x, dtype=torch.uint8) if keep else None
    inside = torch.empty_like(x, dtype=torch.uint8) if keep and masked and not flagged else None
    step = torch.empty((), dtype=torch.float32, device=x.device) if keep else None
    rule = (threshold.detach(), levels, MIN_STEP, low, high, flagged, powers)
    operators(kernels).encode(x, values, stored, inside, statistic, step, *rule)
    if stored is None or step is None:
        return Encoded(values, None)
    return Encoded(values, Codes(stored, step, low, inside, flagged, kernels))
