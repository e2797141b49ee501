"""Statistics of an activation that several calls and several ranks can add up.

A statistic is a pair ``(total, count)``; pairs of the calls of an iteration and of the ranks add up, and the
result is ``total / count``, as if all elements had been in one tensor.
"""

import torch
from torch import Tensor

from .ranges import search_range
from .spec import ActivationSpec

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
        total, count = _norm(x, 1), float(x.numel())
    elif spec.range == 'minmax':
        total, count = _norm(x, float('inf')) * x.numel(), float(x.numel())
    elif spec.range == 'active_mean':
        total, count = _norm(x, 1), _norm(x, 0)
    else:
        total, count = _searched(x, spec, signed) * x.numel(), float(x.numel())
    pair = torch.empty(2, dtype=torch.float64, device=x.device)
    pair[0], pair[1] = total, count
    return pair


def threshold_of(statistic: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
    """Threshold T of a statistic ``total / count``, float32 scalar."""
    if spec.range in ('mean', 'active_mean'):
        statistic = statistic * spec.multiplier(signed)
    return statistic.float()


def _norm(x: Tensor, order: float) -> Tensor:
    return torch.linalg.vector_norm(x, order, dtype=torch.float32)


def _searched(x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
    flat = x.reshape(-1)
    stride = max(flat.numel() // SAMPLE, 1) | 1  # odd, so that it does not follow one image column
    sample = flat[::stride].unsqueeze(0)
    return search_range(sample, spec.levels(signed), spec.code_limits(signed), spec.p)[0]
