"""Statistics of an activation that several calls and several ranks can add up.

A statistic is a pair ``(total, count)``; pairs of the calls of an iteration and of the ranks add up, and the
result is ``total / count``, as if all elements had been in one tensor. Of ``'minmax'`` pairs the larger one counts.
``'search'`` is the exception: it gives the mean of the ranges that were found for the calls and ranks, weighted by
their elements.
"""

import torch
from torch import Tensor

from ...kernels import cpu as native
from ...kernels.dispatch import on_cpu
from ...kernels.scratch import dense, take, unit_of
from ..specs import MEAN_RULES, ActivationSpec
from .squared_error import search_range

SAMPLE = 4096
"""Elements of an activation that a search looks at, evenly spread."""


def collect(x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
    """Statistic of one call.

    Args:
        x: any non-empty shape.

    Returns:
        float64, shape ``(2,)``: total and count.
    """
    x = x.detach()
    if spec.range == 'mean':
        total, count = sum_and_count(x)[0], float(x.numel())
    elif spec.range == 'minmax':
        low, high = x.aminmax()
        total, count = torch.maximum(high, -low).float(), 1.0
    elif spec.range == 'active_mean':
        total, count = sum_and_count(x)
    elif spec.range == 'lehmer':
        total, count = power_sums(x)
    else:
        total, count = _searched(x, spec, signed) * x.numel(), float(x.numel())
    pair = torch.empty(2, dtype=torch.float64, device=x.device)
    pair[0], pair[1] = total, count
    return pair


def add_statistic_(sum_: Tensor, statistic: Tensor, spec: ActivationSpec) -> None:
    """Add a statistic of :func:`collect` to those before it, in place."""
    if spec.range == 'minmax':
        torch.maximum(sum_, statistic, out=sum_)
    else:
        sum_.add_(statistic)


def threshold_of(statistic: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
    """Threshold T of a statistic ``total / count``, float32 scalar."""
    if spec.range in MEAN_RULES:
        statistic = statistic * spec.multiplier(signed)
    return statistic.float()


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


def _searched(x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
    flat = x.reshape(-1)
    stride = max(flat.numel() // SAMPLE, 1) | 1  # odd, so that it does not follow one image column
    sample = flat[::stride].unsqueeze(0)
    return search_range(sample, spec.levels(signed), spec.code_limits(signed), spec.p)[0]
