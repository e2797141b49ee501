"""Uniform quantization and its straight-through gradient, as pure functions.

``fake_quantize_*`` is ``dequantize(quantize(x))`` exactly. Rounding is half-to-even, so that every engine
that follows ONNX ``QuantizeLinear`` gives the same codes. Steps are computed in float32 whatever the
dtype of the tensor.
"""

from typing import Optional

import torch
from torch import Tensor
from torch.autograd import Function

from ..kernels.dispatch import operators
from ..kernels.reference import learned_gradients, learned_slope, round_to_codes_

MIN_STEP = 1e-12
"""Floor of a quantization step: an all-zero group or input still has finite codes."""


def step_of(alpha: Tensor, levels: int) -> Tensor:
    """Quantization step of a range.

    Args:
        alpha: half range of any shape (weights: alpha, activations: T).
        levels: number of steps between 0 and alpha.

    >>> step_of(torch.tensor([1.0, 0.0]), 2)
    tensor([5.0000e-01, 1.0000e-12])
    """
    return (alpha.float() / levels).clamp(min=MIN_STEP)


def quantize(x: Tensor, step: Tensor, limits: tuple[int, int], offset: float = 0.0) -> Tensor:
    """Integer codes ``clip(round(x / step - offset), *limits)``, as float32 of the shape of ``x``.

    Args:
        x: any shape, any floating dtype.
        step: broadcasts against ``x``.
        limits: lowest and highest code.
        offset: of the grid, 0 or 1/2 (midrise).

    >>> quantize(torch.tensor([-2., -.25, .25, .75, 2.]), torch.tensor(.5), (-2, 1))
    tensor([-2., -0.,  0.,  1.,  1.])
    """
    return round_to_codes_(torch.div(x.float(), step), *limits, offset)


def dequantize(codes: Tensor, step: Tensor, offset: float = 0.0) -> Tensor:
    """Values ``(codes + offset) * step``, float32."""
    return (codes + offset if offset else codes) * step


def round_to_grid(
    x: Tensor, step: Tensor, limits: tuple[int, int], offset: float = 0.0, kernels: bool = True
) -> Tensor:
    """``dequantize(quantize(x))`` in the shape and dtype of ``x``, without a gradient; never ``x`` itself."""
    return operators(kernels).fake_quantize(x.detach(), step.detach(), *limits, offset)


class _StraightThrough(Function):
    """Fake quantization; the gradient passes from ``low`` to ``high``, or everywhere if they are None."""

    @staticmethod
    def forward(ctx, x, step, limits, low, high, offset, kernels):
        ctx.masked = low is not None and ctx.needs_input_grad[0]
        if ctx.masked:
            ctx.save_for_backward((x >= low).logical_and_(x <= high))
        return operators(kernels).fake_quantize(x, step, *limits, offset)

    @staticmethod
    def backward(ctx, grad):
        if ctx.masked:
            (inside,) = ctx.saved_tensors
            grad = grad * inside
        return grad, None, None, None, None, None, None


def fake_quantize_weight(
    weight: Tensor, step: Tensor, limits: tuple[int, int], offset: float = 0.0, kernels: bool = True
) -> Tensor:
    """Fake-quantize a weight; the gradient passes through unchanged.

    Scale-Clip keeps the weight inside its range by projection, so no gradient is masked.

    Args:
        weight: shape ``(O, ...)``.
        step: positive, broadcasts against ``weight``; a constant for the gradient.
        limits: lowest and highest code.
        offset: of the grid, 0 or 1/2 (midrise).
        kernels: whether kernels may be used.
    """
    if torch.jit.is_tracing():
        return traced(round_to_grid(weight, step, limits, offset), weight)
    return _StraightThrough.apply(weight, step, limits, None, None, offset, kernels)


def fake_quantize_activation(
    x: Tensor, threshold: Tensor, levels: int, limits: tuple[int, int], kernels: bool = True
) -> Tensor:
    """Fake-quantize an activation; the gradient is zero where ``x`` was clipped.

    Args:
        x: any shape.
        threshold: scalar T > 0; a constant for the gradient.
        levels: steps between 0 and T.
        limits: lowest and highest code; a lowest code of 0 clips to [0, T], else to [-T, T].
        kernels: whether kernels may be used.
    """
    step, (low, high) = step_of(threshold, levels), _bounds(threshold, limits)
    if torch.jit.is_tracing():
        return traced(round_to_grid(x, step, limits), masked(x, low, high))
    return _StraightThrough.apply(x, step, limits, low, high, 0.0, kernels)


def clip_activation(x: Tensor, threshold: Tensor, signed: bool) -> Tensor:
    """Scale-Clip of an activation without rounding: ``x`` clipped to [0, T] or [-T, T].

    The gradient is zero where ``x`` was clipped, and one elsewhere, at the bounds as well (that of ``torch.clamp``
    there depends on the version of torch).
    """
    low, high = clip_bounds(threshold, signed, x.dtype)
    if torch.jit.is_tracing():
        return traced(x.detach().clamp(low, high), masked(x, low, high))
    return _Clip.apply(x, low, high)


class _Clip(Function):
    """Clipping; the gradient passes inside the bounds, and at them."""

    @staticmethod
    def forward(ctx, x, low, high):
        ctx.save_for_backward(x, low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad):
        x, low, high = ctx.saved_tensors
        return grad * ((x >= low) & (x <= high)), None, None


def traced(values: Tensor, *sources: Tensor) -> Tensor:
    """``values`` with the gradients of ``sources``, by operations that a trace can hold in place of a Function.

    The same without gradients, as torch.jit.trace checks its graph by tracing again without them.
    """
    if torch.onnx.is_in_onnx_export():
        return values
    for source in sources:
        values = values + (source - source.detach())  # zero, which changes no value
    return values


def masked(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``x`` for :func:`traced`, whose gradient passes from ``low`` to ``high``."""
    return torch.where((x >= low) & (x <= high), x, low.to(x.dtype))


def keep_in_graph(x: Tensor, idle: Tensor) -> Tensor:
    """A view of ``x`` whose graph holds ``idle`` as well, with a gradient of zero.

    For a learned range that a call does not use: DistributedDataParallel waits for every parameter.
    """
    return x if torch.jit.is_tracing() else _KeepInGraph.apply(x, idle)


class _KeepInGraph(Function):
    @staticmethod
    def forward(ctx, x, idle):
        ctx.like = idle.shape, dict(dtype=idle.dtype, device=idle.device)  # the range itself may change before backward
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        shape, options = ctx.like
        return grad, torch.zeros(shape, **options)


def clip_bounds(threshold: Tensor, signed: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of a clipped activation, as scalars of ``dtype``."""
    high = threshold.to(dtype, copy=True)  # the backward pass reads it after the threshold has moved on
    return -high if signed else torch.zeros_like(high), high


def _bounds(threshold: Tensor, limits: tuple[int, int]) -> tuple[Tensor, Tensor]:
    high = threshold.float()
    return (torch.zeros_like(high) if limits[0] == 0 else -high), high


class _LearnedStep(Function):
    """Fake quantization whose step has the gradient of LSQ (Esser et al., ICLR 2020, equations 2 to 5)."""

    @staticmethod
    def forward(ctx, x, step, limits, grad_scale, offset, kernels):
        ctx.save_for_backward(x, step)  # not a copy: the layer that made x, or the float layer, keeps it as well
        ctx.rule, ctx.grad_scale, ctx.kernels = (*limits, offset), grad_scale, kernels
        return operators(kernels).fake_quantize(x, step, *ctx.rule)

    @staticmethod
    def backward(ctx, grad):
        x, step = ctx.saved_tensors
        # only the reference has a gradient itself
        gradients = learned_gradients if torch.is_grad_enabled() else operators(ctx.kernels).learned_gradients
        grad_x, grad_step = gradients(x, grad, step, *ctx.rule)
        return grad_x, grad_step * ctx.grad_scale, None, None, None, None


def learned_range_scale(elements: float, limits: tuple[int, int], levels: int) -> float:
    """Factor on the gradient of a step that trains its range: ``levels^2 / sqrt(N * highest code)``.

    LSQ (Esser et al., ICLR 2020, section 2.2) trains the step with ``1 / sqrt(N * highest code)``. Of a range
    ``alpha = levels * step`` the gradient is ``levels`` times smaller and the change has to be ``levels`` times
    larger; with this factor an optimizer step without memory of magnitudes (SGD) moves it as LSQ moves the step.

    Args:
        elements: number N of elements that share the range.
        limits: lowest and highest code.
        levels: number of steps between 0 and the range.

    >>> learned_range_scale(4, (-2, 1), 2)
    2.0
    """
    return levels**2 * (elements * max(limits[1], 1)) ** -0.5


def fake_quantize_learned(
    x: Tensor,
    step: Tensor,
    limits: tuple[int, int],
    grad_scale: Optional[float] = None,
    offset: float = 0.0,
    kernels: bool = True,
) -> Tensor:
    """Fake quantization with a trainable step.

    Args:
        x: any shape.
        step: positive, broadcasts against ``x``; receives the LSQ gradient.
        limits: lowest and highest code.
        grad_scale: factor on the gradient of the step; None takes LSQ's ``1 / sqrt(N * highest code)``
            with N elements that share one step.
        offset: of the grid, 0 or 1/2 (midrise).
        kernels: whether kernels may be used.
    """
    if grad_scale is None:
        grad_scale = learned_range_scale(max(x.numel() // max(step.numel(), 1), 1), limits, levels=1)
    if torch.jit.is_tracing():
        inside, slope = learned_slope(x.detach(), step.detach(), *limits, offset)
        passing = torch.where(inside, x, step.detach().to(x.dtype))
        return traced(round_to_grid(x, step, limits, offset), passing, step * slope * grad_scale)
    return _LearnedStep.apply(x, step, limits, grad_scale, offset, kernels)
