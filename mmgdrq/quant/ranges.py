"""Rules that choose the range of a group or tensor, and the loss that judges a range.

Source: GDRQ's quantized-loss (its figure 5) and Scale-Clip threshold ``T = k * mean|W|``.
"""

import torch
from torch import Tensor

from . import native
from .backend import on_cpu
from .fake_quant import dequantize, quantize, step_of
from .groups import broadcast_filters, group_max_abs, group_mean_abs, per_filter, per_group
from .scratch import dense
from .spec import WeightSpec

COARSE, FINE = 32, 7
"""Candidates of a search: a geometric grid, then a finer one around its best."""


def quantized_loss(
    x: Tensor, alpha: Tensor, levels: int, limits: tuple[int, int], p: int = 1, offset: float = 0.0
) -> Tensor:
    """Relative error ``||x - Q(x; alpha)||_p / ||x||_p`` over the last dimension.

    Args:
        x: shape ``(..., N)``.
        alpha: shape ``(...)``, the range of every row.
        levels: steps between 0 and alpha.
        limits: lowest and highest code.
        p: norm, 1 or 2.
        offset: of the grid, 0 or 1/2 (midrise).

    Returns:
        float32, shape ``(...)``; 0 for an all-zero row.
    """
    norm = torch.linalg.vector_norm(x.float(), p, dim=-1)
    return _error(x, alpha, levels, limits, p, offset) / norm.clamp(min=torch.finfo(torch.float32).tiny)


def search_range(x: Tensor, levels: int, limits: tuple[int, int], p: int = 2, offset: float = 0.0) -> Tensor:
    """Range of every row that minimises the quantized-loss.

    The candidates are fractions of the largest magnitude: a geometric grid, then a finer grid around its
    best. All rows are searched at once, without a device synchronization.

    Args:
        x: shape ``(R, N)``.
        levels: steps between 0 and alpha.
        limits: lowest and highest code.
        p: norm, 1 or 2.
        offset: of the grid, 0 or 1/2 (midrise).

    Returns:
        float32, shape ``(R,)``.
    """
    largest = x.detach().abs().amax(-1).float()
    fractions = torch.logspace(0.15, -1.6, COARSE, device=x.device)
    best = _best_of(x, largest, fractions, levels, limits, p, offset)
    ratio = 10 ** (1.75 / (COARSE - 1))
    fine = torch.linspace(1 / ratio, ratio, FINE, device=x.device)
    return _best_of(x, best, fine, levels, limits, p, offset)


def weight_range(weight: Tensor, spec: WeightSpec) -> Tensor:
    """Range alpha of every group by the rule of ``spec``; ``'learned'`` starts from ``'search'``.

    Args:
        weight: shape ``(O, ...)``.

    Returns:
        float32, shape ``(G,)``.
    """
    if spec.range == 'mean':
        return group_mean_abs(weight, spec.group_size) * spec.multiplier
    if spec.range == 'minmax':
        return group_max_abs(weight, spec.group_size)
    rows = per_group(weight.detach().flatten(1), spec.group_size).flatten(1)
    return search_range(rows, spec.levels, spec.code_limits, spec.p, spec.offset)


def weight_step(weight: Tensor, alpha: Tensor, spec: WeightSpec) -> Tensor:
    """Step of every filter, shaped to broadcast against ``weight`` of shape ``(O, ...)``.

    Args:
        alpha: shape ``(G,)``.
    """
    steps = per_filter(step_of(alpha, spec.levels), weight.shape[0], spec.group_size)
    return broadcast_filters(steps, weight)


def scale_clip_(weight: Tensor, spec: WeightSpec) -> Tensor:
    """Scale-Clip: project ``weight`` in place to ``[-T_g, T_g]`` with ``T_g = k * mean|W_g|``.

    Args:
        weight: shape ``(O, ...)``; changed in place, outside of autograd.

    >>> w = torch.tensor([[1., -1., 1., -9.]])
    >>> scale_clip_(w, WeightSpec(k=2.0))
    tensor([[ 1., -1.,  1., -6.]])
    """
    with torch.no_grad():
        by_kernel = on_cpu(weight) and dense(weight) is weight
        if by_kernel and spec.group_size == 1:
            native.clip_rows(weight, None, spec.clip_multiplier)
            return weight
        bound = group_mean_abs(weight, spec.group_size) * spec.clip_multiplier
        bound = per_filter(bound, weight.shape[0], spec.group_size).contiguous()
        if by_kernel:
            native.clip_rows(weight, bound, 0.0)
            return weight
        bound = broadcast_filters(bound, weight).to(weight.dtype)
        return torch.clamp(weight, -bound, bound, out=weight)


def _best_of(x, centre, factors, levels, limits, p, offset):
    best_error = torch.full_like(centre, float('inf'))
    best = centre.clone()
    for factor in factors:
        alpha = centre * factor
        error = _error(x, alpha, levels, limits, p, offset)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, alpha, best)
    return best


def _error(x, alpha, levels, limits, p, offset):
    step = step_of(alpha, levels).unsqueeze(-1)
    difference = x.float() - dequantize(quantize(x, step, limits, offset), step, offset)
    return torch.linalg.vector_norm(difference, p, dim=-1)
