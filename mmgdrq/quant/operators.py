"""Convolution and matrix product whose backward pass reads one-byte codes instead of float copies.

The gradients are those of ``F.conv2d`` and ``F.linear`` on fake-quantized operands, bit for bit: the values are
dequantized again and go through the same kernels.
"""

from dataclasses import replace
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ..errors import QuantizationError
from .codes import Encoded, Kept, Learned

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
    (x, inputs), (weight, filters) = _split(*x), _split(*weight)
    if torch.is_grad_enabled() and (inputs or filters):
        steps = [None if operand is None else operand.step for operand in (inputs, filters)]
        return operator.apply(x, weight, bias, *steps, inputs, filters, geometry)
    return operator.compute(_values(x, inputs), _values(weight, filters), bias, *geometry)


def _split(tensor: Tensor, operand: Operand) -> tuple[Tensor, Optional[Encoded]]:
    """The tensor that the gradient belongs to, and how its values are kept."""
    if not isinstance(operand, Encoded):
        return operand, None
    return tensor if operand.source is None else operand.source, operand


class _Quantized(Function):
    """Saving and restoring of the operands; a subclass defines ``compute`` and ``gradients``."""

    compute: Any
    gradients: Any

    @classmethod
    def run(cls, ctx, x, weight, bias, input_step, weight_step, inputs, filters, geometry) -> Tensor:
        y = cls.compute(_values(x, inputs), _values(weight, filters), bias, *geometry)
        (of_x, kept_x), (of_weight, kept_weight) = _kept(x, inputs), _kept(weight, filters)
        ctx.codes = of_x, of_weight
        ctx.save_for_backward(*kept_x, *kept_weight)
        ctx.dtypes = [t.dtype for t in (x, weight)] + [None if bias is None else bias.dtype]
        ctx.geometry, ctx.dtype = geometry, y.dtype
        return y

    @classmethod
    def pull_back(cls, ctx, grad: Tensor):
        if torch.is_grad_enabled():
            raise QuantizationError(
                'a quantized layer: gradients of its gradients were asked for (create_graph=True, as for a gradient '
                'penalty). The one-byte codes that it keeps do not give them: set execution=dict(codes=False), or call '
                'mmgdrq.set_execution(model, codes=False)'
            )
        saved = list(ctx.saved_tensors)
        operands = [_restored(codes, saved) for codes in ctx.codes]
        values = [
            (operand.values(slot) if isinstance(operand, Kept) else operand).to(dtype).to(ctx.dtype)
            for operand, slot, dtype in zip(operands, ('input', 'weight'), ctx.dtypes)
        ]
        of_input, of_weight, of_bias, *of_steps = ctx.needs_input_grad[:5]
        wanted = of_input or of_steps[0], of_weight or of_steps[1], of_bias
        grads = list(cls.gradients(grad, *values, wanted, *ctx.geometry))
        grads = [g.to(dtype) if want else None for g, dtype, want in zip(grads, ctx.dtypes, wanted)]
        steps: list[Optional[Tensor]] = [None, None]
        for i, operand in enumerate(operands):
            if grads[i] is not None and isinstance(operand, Learned):
                grads[i], steps[i] = operand.gradients(grads[i])
            elif grads[i] is not None and isinstance(operand, Kept):
                grads[i] = operand.mask_(grads[i])
        return (*grads, *steps, None, None, None)


class _Conv2d(_Quantized):
    @staticmethod
    def forward(ctx, *args):
        return _Conv2d.run(ctx, *args)

    @staticmethod
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
        return y if y._base is None else y.new_empty(0).set_(y)  # type: ignore[call-overload]  # torch has it

    @staticmethod
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


def _kept(tensor: Tensor, operand: Optional[Encoded]) -> tuple[Optional[Kept], list]:
    """What is kept of an operand without its tensors, and these, for autograd to keep."""
    if operand is None:
        return None, [tensor]
    codes: Any = operand.codes
    return replace(codes, **dict.fromkeys(codes.tensors)), [getattr(codes, name) for name in codes.tensors]


def _restored(codes: Any, saved: list) -> Union[Tensor, Kept]:
    """The reverse; takes its tensors from the front of ``saved``."""
    if codes is None:
        return saved.pop(0)
    return replace(codes, **{name: saved.pop(0) for name in codes.tensors})
