"""The quantized-loss, which judges a range, and the range that makes it smallest.

Source: GDRQ's quantized-loss (its figure 5). A weight moves little in one training step, so that a range that was
searched once is only improved from then on (:func:`improve_weight_range`), at a thirteenth of the cost.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fake_quant import round_to_grid, step_of
from ..groups import group_max_abs, group_mean_abs, per_filter, per_group
from ..specs import WeightSpec

COARSE, FINE = 32, 7
"""Candidates of a search: a geometric grid, then a finer one around its best."""

SMALLEST, LARGEST = 10**-1.6, 10**0.15
"""Ranges that the grid spans, in units of the largest magnitude."""

NEAR = (1.0, 0.97, 1.03)
"""Candidates around a range that was good an iteration ago."""


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
    return _error(x.float(), alpha, levels, limits, p, offset) / norm.clamp(min=torch.finfo(torch.float32).tiny)


def search_range(
    x: Tensor, levels: int, limits: tuple[int, int], p: int = 2, offset: float = 0.0, kernels: bool = True
) -> Tensor:
    """Range of every row that minimises the quantized-loss.

    The candidates are fractions of the largest magnitude: a geometric grid, then a finer grid around its
    best. All rows are searched at once, without a device synchronization.

    Args:
        x: shape ``(R, N)``.
        levels: steps between 0 and alpha.
        limits: lowest and highest code.
        p: norm, 1 or 2.
        offset: of the grid, 0 or 1/2 (midrise).
        kernels: whether kernels may be used.

    Returns:
        float32, shape ``(R,)``.
    """
    return _Groups(x.detach().float(), levels, limits, p, offset, kernels=kernels).search()


def search_weight_range(weight: Tensor, spec: WeightSpec, kernels: bool = True) -> Tensor:
    """Range of every group that minimises the quantized-loss of its filters together.

    Args:
        weight: shape ``(O, ...)``.
        spec: bits, grid, groups and norm.
        kernels: whether kernels may be used.

    Returns:
        float32, shape ``(G,)``.
    """
    return _Groups.of(weight, spec, kernels).search()


def improve_weight_range(weight: Tensor, alpha: Tensor, spec: WeightSpec, kernels: bool = True) -> Tensor:
    """The best of three ranges: ``alpha`` and those 3 % below and above.

    A range that no search would find for this weight, which was all zero or was replaced, starts from the rule
    ``'mean'``.

    Args:
        weight: shape ``(O, ...)``.
        alpha: shape ``(G,)``.
        spec: bits, grid, groups and norm.
        kernels: whether kernels may be used.

    Returns:
        float32, shape ``(G,)``.
    """
    largest = group_max_abs(weight, spec.group_size)
    possible = (alpha >= SMALLEST * largest) & (alpha <= LARGEST * largest)
    start = torch.where(possible, alpha, group_mean_abs(weight, spec.group_size, kernels) * spec.multiplier)
    return _Groups.of(weight, spec, kernels).best_of(start, NEAR)


@dataclass(frozen=True)
class _Groups:
    """Rows, of which ``group_size`` share one range."""

    rows: Tensor
    levels: int
    limits: tuple[int, int]
    p: int
    offset: float
    group_size: int = 1
    kernels: bool = True

    @classmethod
    def of(cls, weight: Tensor, spec: WeightSpec, kernels: bool) -> '_Groups':
        rows = weight.detach().flatten(1).float()
        return cls(rows, spec.levels, spec.code_limits, spec.p, spec.offset, spec.group_size, kernels)

    def search(self) -> Tensor:
        largest = group_max_abs(self.rows, self.group_size)
        low, high = math.log10(SMALLEST), math.log10(LARGEST)
        best = self.best_of(largest, torch.logspace(high, low, COARSE, device=self.rows.device))
        ratio = 10 ** ((high - low) / (COARSE - 1))
        return self.best_of(best, torch.linspace(1 / ratio, ratio, FINE, device=self.rows.device))

    def best_of(self, centre: Tensor, factors: Iterable) -> Tensor:
        best, best_error = centre, torch.full_like(centre, float('inf'))
        for factor in factors:
            alpha = centre * factor
            error = self._sum(_error(self.rows, self._per_row(alpha), *self._grid()) ** self.p)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = torch.where(better, alpha, best)
        return best

    def _per_row(self, alpha: Tensor) -> Tensor:
        return per_filter(alpha, len(self.rows), self.group_size)

    def _sum(self, values: Tensor) -> Tensor:
        return per_group(values, self.group_size).sum(1)

    def _grid(self) -> tuple[int, tuple[int, int], int, float, bool]:
        return self.levels, self.limits, self.p, self.offset, self.kernels


@torch.no_grad()
def _error(
    x: Tensor, alpha: Tensor, levels: int, limits: tuple[int, int], p: int, offset: float, kernels: bool = True
) -> Tensor:
    step = step_of(alpha, levels).unsqueeze(-1)
    return torch.linalg.vector_norm(round_to_grid(x, step, limits, offset, kernels).sub_(x), p, dim=-1)
