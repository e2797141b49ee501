"""Affine quantization of activations: unsigned codes with a zero point, one grid for all or one per channel.

``x`` becomes ``clip(round(x / scale) + zero_point, 0, top)``, as ONNX ``QuantizeLinear`` says, and stands for
``(code - zero_point) * scale``. Zero is a code exactly, so that zero padding stays exact, and code minus zero point is
an integer, so that sums of products do.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from .fake_quant import MIN_STEP, masked, traced


def affine_grid(low: Tensor, high: Tensor, bits: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid that reaches from ``low`` to ``high`` and holds zero.

    Args:
        low, high: lowest and highest value, of any shape; zero is always inside.
        bits: of the codes.
        symmetric: put the zero point into the middle.

    Returns:
        scale and zero point, float32, of the same shape; the zero point is an integer from 0 to the highest code.

    >>> affine_grid(torch.tensor(-0.5), torch.tensor(12.25), 8)
    (tensor(0.0500), tensor(10.))
    >>> affine_grid(torch.tensor(1.0), torch.tensor(2.0), 8)[1]
    tensor(0.)
    """
    top = 2**bits - 1
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    if symmetric:
        middle = 2 ** (bits - 1)
        scale = torch.maximum(-low / middle, high / (middle - 1)).clamp(min=MIN_STEP)
        return scale, torch.full_like(scale, middle)
    scale = ((high - low) / top).clamp(min=MIN_STEP)
    return scale, ((0 - low) / scale).round_().clamp_(0, top)  # not -0


def affine_integers(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Codes minus zero point, integers held in float32.

    Args:
        x: any shape.
        scale, zero_point: broadcast against ``x``.
        bits: of the codes.
    """
    return torch.div(x.float(), scale).round_().clamp_(-zero_point, 2**bits - 1 - zero_point)


def fake_quantize_affine(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Fake-quantize an activation on an affine grid; the gradient is zero where ``x`` was clipped.

    Args:
        x: any shape, any floating dtype.
        scale, zero_point: broadcast against ``x``; constants for the gradient.
        bits: of the codes.
    """
    if torch.jit.is_tracing():
        values = (affine_integers(x.detach(), scale, zero_point, bits) * scale).to(x.dtype)
        return traced(values, masked(x, *affine_bounds(scale, zero_point, bits)))
    return _Affine.apply(x, scale, zero_point, bits)


def clip_affine(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """``x`` clipped to the grid without rounding."""
    low, high = affine_bounds(scale, zero_point, bits)
    return torch.minimum(torch.maximum(x, low.to(x.dtype)), high.to(x.dtype))


def affine_bounds(scale: Tensor, zero_point: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of a grid."""
    return -zero_point * scale, (2**bits - 1 - zero_point) * scale


class _Affine(Function):
    """Fake quantization with a straight-through gradient inside the grid."""

    @staticmethod
    def forward(ctx, x, scale, zero_point, bits):
        if ctx.needs_input_grad[0]:
            low, high = affine_bounds(scale, zero_point, bits)
            ctx.save_for_backward((x >= low).logical_and_(x <= high))
        values = affine_integers(x, scale, zero_point, bits).mul_(scale)
        return values if values.dtype == x.dtype else values.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None, None
