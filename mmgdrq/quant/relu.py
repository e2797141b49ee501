"""ReLU that keeps the sign of its input for the backward pass, not its output: one bit per element (or one byte)."""

import torch
from torch import Tensor
from torch.autograd import Function

from ..kernels import cpu
from ..kernels.dispatch import packs_signs
from ..kernels.scratch import dense


def relu(x: Tensor, inplace: bool = False, kernels: bool = True) -> Tensor:
    """``max(x, 0)`` with the gradient of ``F.relu``.

    >>> x = torch.tensor([-1., 0., 2.], requires_grad=True)
    >>> relu(x).sum().backward()
    >>> x.grad
    tensor([0., 0., 1.])
    """
    return _Relu.apply(x, inplace, kernels)


class _Relu(Function):
    @staticmethod
    def forward(ctx, x, inplace, kernels):
        ctx.packed = packs_signs(x, kernels) and dense(x) is x and x.numel() > 0
        if ctx.packed:
            result = x if inplace else torch.empty_like(x)
            positive = x.new_empty(-(-x.numel() // 8), dtype=torch.uint8)
            cpu.relu(x, result, positive)
        else:
            result = x.relu_() if inplace else x.relu()
            positive = (result <= 0).logical_not_()
        ctx.like = torch.empty_like(result, device='meta')  # the order of its elements in memory
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(positive)
        return result

    @staticmethod
    def backward(ctx, grad):
        (positive,) = ctx.saved_tensors
        if not ctx.packed:
            return torch.where(positive, grad, 0), None, None
        masked = _Masked.apply if torch.is_grad_enabled() else _masked
        return masked(grad, positive, ctx.like), None, None


class _Masked(Function):
    """The gradient of ReLU by packed signs, which has a gradient itself."""

    @staticmethod
    def forward(ctx, grad, positive, like):
        ctx.like = like
        ctx.save_for_backward(positive)
        return _masked(grad, positive, like)

    @staticmethod
    def backward(ctx, grad):
        return _Masked.apply(grad, *ctx.saved_tensors, ctx.like), None, None


def _masked(grad: Tensor, positive: Tensor, like: Tensor) -> Tensor:
    result = torch.empty_like(like, device='cpu')
    if grad.stride() != result.stride():
        grad = torch.empty_like(result).copy_(grad)
    cpu.relu_backward(grad, positive, result)
    return result
