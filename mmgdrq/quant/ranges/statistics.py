"""Sums over all elements of an activation, which those of other calls and ranks are added to."""

import torch
from torch import Tensor

from ...kernels import cpu as native
from ...kernels.dispatch import on_cpu
from ...kernels.scratch import dense, take, unit_of


def sum_and_count(x: Tensor) -> Tensor:
    """sum|x| and the number of elements that are not zero.

    Returns:
        float64, shape ``(2,)``.
    """
    x = dense(x.detach()).float()
    pair = torch.empty(2, dtype=torch.float64, device=x.device)
    if on_cpu(x):
        native.statistic(x, pair)
        return pair
    if x.device.type != 'cpu' or torch.compiler.is_compiling():
        pair[0], pair[1] = torch.linalg.vector_norm(x, 1), torch.linalg.vector_norm(x, 0)
        return pair
    magnitude = torch.abs(x, out=take('work', x, torch.float32))  # norms are not vectorized on a CPU
    pair[0], pair[1] = magnitude.sum(), magnitude.sign_().sum()
    return pair


def power_sums(x: Tensor) -> Tensor:
    """sum|x|^3 and sum(x^2), whose quotient is the Lehmer mean of order 3 of the magnitudes.

    They are summed up in units of the largest magnitude, so that no cube overflows.

    Returns:
        float64, shape ``(2,)``.
    """
    x = dense(x.detach()).float()
    low, high = x.aminmax()
    unit = unit_of(torch.maximum(high, -low))
    pair = torch.empty(2, dtype=torch.float64, device=x.device)
    if on_cpu(x):
        native.power_sums(x, pair, unit.item())
        return pair
    magnitude = torch.div(x, unit).abs_()
    squares = magnitude.square()
    unit = unit.double()
    pair[0], pair[1] = magnitude.mul_(squares).sum() * unit**3, squares.sum() * unit**2
    return pair
