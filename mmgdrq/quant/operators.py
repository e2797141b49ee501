"""Convolution and matrix product whose backward pass reads one-byte codes instead of float copies.

The gradients are those of ``F.conv2d`` and ``F.linear`` on fake-quantized operands, bit for bit: the values are
dequantized again and go through the same kernels.
"""

from typing import Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .codes import Codes, Encoded, Requantized

Operand = Union[Tensor, Encoded]
"""A tensor that the operator uses as it is, or a quantized one."""


def conv2d(x: Tensor, weight: Tensor, bias: Optional[Tensor], inputs: Operand, filters: Operand, conv) -> Tensor:
    """``F.conv2d`` on quantized operands.

    Args:
        x, weight: the float tensors that the gradients belong to; read only where their operand is encoded.
        inputs, filters: the operands.
        conv: an ``nn.Conv2d`` with zero padding, whose stride, padding, dilation and groups are used.
    """
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return _apply(_Conv2d, (x, inputs), (weight, filters), bias, geometry)


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor], inputs: Operand, filters: Operand) -> Tensor:
    """``F.linear`` on quantized operands; arguments as for :func:`conv2d`."""
    return _apply(_Linear, (x, inputs), (weight, filters), bias, ())


def _apply(operator, x, weight, bias, geometry) -> Tensor:
    (x, inputs), (weight, filters) = (pair if isinstance(pair[1], Encoded) else (pair[1], None) for pair in (x, weight))
    if torch.is_grad_enabled() and (inputs or filters):
        return operator.apply(x, weight, bias, inputs, filters, geometry)
    return operator.compute(_values(x, inputs), _values(weight, filters), bias, *geometry)


class _Quantized(Function):
    """Saving and restoring of the operands; a subclass defines ``compute`` and ``gradients``."""

    @classmethod
    def run(cls, ctx, x, weight, bias, inputs, filters, geometry) -> Tensor:
        y = cls.compute(_values(x, inputs), _values(weight, filters), bias, *geometry)
        ctx.save_for_backward(*_kept(x, inputs), *_kept(weight, filters))
        ctx.codes = [_without_tensors(operand) for operand in (inputs, filters)]
        ctx.dtypes = [t.dtype for t in (x, weight)] + [None if bias is None else bias.dtype]
        ctx.geometry, ctx.dtype = geometry, y.dtype
        return y

    @classmethod
    def pull_back(cls, ctx, grad: Tensor):
        saved = ctx.saved_tensors
        codes = [_with_tensors(form, saved[i * 3 : i * 3 + 3]) for i, form in enumerate(ctx.codes)]
        values = [
            (code.values(slot) if code else saved[i * 3]).to(dtype).to(ctx.dtype)
            for i, (code, slot, dtype) in enumerate(zip(codes, ('input', 'weight'), ctx.dtypes))
        ]
        wanted = ctx.needs_input_grad[:3]
        grads = list(cls.gradients(grad, *values, wanted, *ctx.geometry))
        grads = [g.to(dtype) if want else None for g, dtype, want in zip(grads, ctx.dtypes, wanted)]
        if wanted[0] and codes[0]:
            grads[0] = codes[0].mask_(grads[0])
        return (*grads, None, None, None)


class _Conv2d(_Quantized):
    @staticmethod
    def forward(ctx, *args):
        return _Conv2d.run(ctx, *args)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _Conv2d.pull_back(ctx, grad)

    @staticmethod
    def compute(x, weight, bias, stride, padding, dilation, groups):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def gradients(grad, x, weight, wanted, stride, padding, dilation, groups):
        return torch.ops.aten.convolution_backward(
            grad, x, weight, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, wanted
        )


class _Linear(_Quantized):
    @staticmethod
    def forward(ctx, *args):
        y = _Linear.run(ctx, *args)
        # F.linear gives a view for inputs of more than two dimensions, and autograd forbids to change a view that a
        # Function returns in place, as an in-place ReLU does: the same memory, but no view
        return y if y._base is None else y.new_empty(0).set_(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _Linear.pull_back(ctx, grad)

    @staticmethod
    def compute(x, weight, bias):
        return F.linear(x, weight, bias)

    @staticmethod
    def gradients(grad, x, weight, wanted):
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            (rows @ weight).reshape(x.shape) if wanted[0] else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if wanted[1] else None,
            rows.sum(0) if wanted[2] else None,
        )


def _values(tensor: Tensor, operand: Optional[Encoded]) -> Tensor:
    return tensor if operand is None else operand.values.to(tensor.dtype)


def _kept(tensor: Tensor, operand: Optional[Encoded]) -> tuple:
    if operand is None:
        return tensor, None, None
    codes = operand.codes
    if isinstance(codes, Requantized):
        return tensor, codes.step, None
    return codes.stored, codes.step, codes.inside


def _without_tensors(operand: Optional[Encoded]) -> Optional[tuple]:
    if operand is None:
        return None
    codes = operand.codes
    return (codes.limits, codes.offset) if isinstance(codes, Requantized) else (codes.lowest, codes.flagged)


def _with_tensors(form: Optional[tuple], saved) -> Union[Codes, Requantized, None]:
    if form is None:
        return None
    first, step, inside = saved
    if isinstance(form[0], tuple):
        return Requantized(first, step, *form)
    return Codes(first, step, form[0], inside, form[1])
