"""Uniform quantization and its straight-through gradient, as pure functions.

``fake_quantize_*`` is ``dequantize(quantize(x))`` exactly. Rounding is half-to-even, so that every engine
that follows ONNX ``QuantizeLinear`` gives the same codes. Steps are computed in float32 whatever the
dtype of the tensor.
"""

from typing import Optional

import torch
from torch import Tensor
from torch.autograd import Function

from ..kernels import cpu as native
from ..kernels.dispatch import on_cpu
from ..kernels.scratch import dense

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
    return round_to_codes_(torch.div(x.float(), step), limits, offset)


def round_to_codes_(scaled: Tensor, limits: tuple[int, int], offset: float = 0.0) -> Tensor:
    """``clip(round(scaled - offset), *limits)`` in place; ``scaled`` is in units of the step."""
    if offset:
        scaled.sub_(offset)
    return scaled.round_().clamp_(*limits)


def dequantize(codes: Tensor, step: Tensor, offset: float = 0.0) -> Tensor:
    """Values ``(codes + offset) * step``, float32."""
    return (codes + offset if offset else codes) * step


def round_to_grid(x: Tensor, step: Tensor, limits: tuple[int, int], offset: float = 0.0) -> Tensor:
    """``dequantize(quantize(x))`` in the shape and dtype of ``x``, without a gradient; never ``x`` itself."""
    if _by_kernel(x, step):
        values = torch.empty_like(x)
        native.encode_rows(x, step, values, limits, offset)
        return values
    return _cast(dequantize(quantize(x, step, limits, offset), step, offset), x.dtype)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``; one that changes nothing makes torch.compile lose the gradient of a Function (torch 2.11)."""
    return x if x.dtype == dtype else x.to(dtype)


class _StraightThrough(Function):
    """Fake quantization; the gradient passes from ``low`` to ``high``, or everywhere if they are None."""

    @staticmethod
    def forward(ctx, x, step, limits, low, high, offset):
        wanted = ctx.needs_input_grad[0] or torch.jit.is_tracing()  # torch.jit.trace checks its graph without gradients
        ctx.masked = low is not None and wanted
        if ctx.masked:
            ctx.save_for_backward((x >= low).logical_and_(x <= high))
        return round_to_grid(x, step, limits, offset)

    @staticmethod
    def backward(ctx, grad):
        if ctx.masked:
            (inside,) = ctx.saved_tensors
            grad = grad * inside
        return grad, None, None, None, None, None


def fake_quantize_weight(weight: Tensor, step: Tensor, limits: tuple[int, int], offset: float = 0.0) -> Tensor:
    """Fake-quantize a weight; the gradient passes through unchanged.

    Scale-Clip keeps the weight inside its range by projection, so no gradient is masked.

    Args:
        weight: shape ``(O, ...)``.
        step: positive, broadcasts against ``weight``; a constant for the gradient.
        limits: lowest and highest code.
        offset: of the grid, 0 or 1/2 (midrise).
    """
    return _StraightThrough.apply(weight, step, limits, None, None, offset)


def fake_quantize_activation(x: Tensor, threshold: Tensor, levels: int, limits: tuple[int, int]) -> Tensor:
    """Fake-quantize an activation; the gradient is zero where ``x`` was clipped.

    Args:
        x: any shape.
        threshold: scalar T > 0; a constant for the gradient.
        levels: steps between 0 and T.
        limits: lowest and highest code; a lowest code of 0 clips to [0, T], else to [-T, T].
    """
    return _StraightThrough.apply(x, step_of(threshold, levels), limits, *_bounds(threshold, limits), 0.0)


def clip_activation(x: Tensor, threshold: Tensor, signed: bool) -> Tensor:
    """Scale-Clip of an activation without rounding: ``x`` clipped to [0, T] or [-T, T].

    The gradient is zero where ``x`` was clipped, and one elsewhere, at the bounds as well (that of ``torch.clamp``
    there depends on the version of torch).
    """
    return _Clip.apply(x, *clip_bounds(threshold, signed, x.dtype))


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


def keep_in_graph(x: Tensor, idle: Tensor) -> Tensor:
    """A view of ``x`` whose graph holds ``idle`` as well, with a gradient of zero.

    For a learned range that a call does not use: DistributedDataParallel waits for every parameter.
    """
    return _KeepInGraph.apply(x, idle)


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
    def forward(ctx, x, step, limits, grad_scale, offset):
        ctx.save_for_backward(x, step)  # not a copy: the layer that made x, or the float layer, keeps it as well
        ctx.limits, ctx.grad_scale, ctx.offset = limits, grad_scale, offset
        return round_to_grid(x, step, limits, offset)

    @staticmethod
    def backward(ctx, grad):
        x, step = ctx.saved_tensors
        if not torch.is_grad_enabled() and _by_kernel(x, step, grad) and grad.stride() == x.stride():
            result, sums = torch.empty_like(x), torch.empty_like(step)
            native.learned_backward(x, grad, step, result, sums, ctx.limits, ctx.offset)
            return result, sums.mul_(ctx.grad_scale), None, None, None
        scaled = torch.div(x.float(), step)
        (low, high), offset = ctx.limits, ctx.offset
        levels = round_to_codes_(scaled.clone(), ctx.limits, offset).add_(offset)
        inside = (scaled >= low) & (scaled <= high + 2 * offset)  # midrise: half a step beyond the outer levels
        slope = torch.where(inside, levels - scaled, levels)
        grad_step = (grad.float() * slope).sum_to_size(step.shape) * ctx.grad_scale
        return grad * inside, grad_step, None, None, None


def _by_kernel(x: Tensor, step: Tensor, *others: Tensor) -> bool:
    """Whether ``native`` works on ``x`` with one step for all of it, or one a row."""
    by_rows = step.numel() == 1 or (step.dim() == x.dim() and step.numel() == x.shape[0] == step.shape[0])
    return on_cpu(x, step, *others) and by_rows and x.numel() > 0 and dense(x) is x and step.is_contiguous()


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
    x: Tensor, step: Tensor, limits: tuple[int, int], grad_scale: Optional[float] = None, offset: float = 0.0
) -> Tensor:
    """Fake quantization with a trainable step.

    Args:
        x: any shape.
        step: positive, broadcasts against ``x``; receives the LSQ gradient.
        limits: lowest and highest code.
        grad_scale: factor on the gradient of the step; None takes LSQ's ``1 / sqrt(N * highest code)``
            with N elements that share one step.
        offset: of the grid, 0 or 1/2 (midrise).
    """
    if grad_scale is None:
        grad_scale = learned_range_scale(max(x.numel() // max(step.numel(), 1), 1), limits, levels=1)
    return _LearnedStep.apply(x, step, limits, grad_scale, offset)
