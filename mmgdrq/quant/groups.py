"""Groups of filters: which filters share a range, and statistics per group.

The ``O`` filters of a weight of shape ``(O, ...)`` are split into ``G = ceil(O / group_size)`` groups of
consecutive filters; the last group may be smaller (source: section "Group-based quantization" of GDRQ).
"""

import torch
from torch import Tensor

from ..kernels.dispatch import operators


def _size(filters: int, group_size: int) -> int:
    return filters if group_size == -1 else min(group_size, filters)


def num_groups(filters: int, group_size: int) -> int:
    """Number of groups of a layer.

    >>> num_groups(10, 4), num_groups(10, 1), num_groups(10, -1)
    (3, 10, 1)
    """
    size = _size(filters, group_size)
    return -(-filters // size)


def per_filter(values: Tensor, filters: int, group_size: int) -> Tensor:
    """Repeat one value per group, shape ``(G,)``, to one value per filter, shape ``(O,)``.

    >>> per_filter(torch.tensor([1., 2., 3.]), 5, 2)
    tensor([1., 1., 2., 2., 3.])
    """
    if group_size == 1:
        return values
    if values.shape[0] == 1:
        return values.expand(filters)
    return values.repeat_interleave(group_size)[:filters]


def per_group(values: Tensor, group_size: int, pad: float = 0.0) -> Tensor:
    """Arrange one value per filter, shape ``(O, ...)``, as ``(G, group_size, ...)``.

    The missing filters of a smaller last group are filled with ``pad``.

    >>> per_group(torch.arange(1., 6.), 2)
    tensor([[1., 2.],
            [3., 4.],
            [5., 0.]])
    """
    filters = values.shape[0]
    size = _size(filters, group_size)
    missing = num_groups(filters, group_size) * size - filters
    if missing:
        padding = values.new_full((missing, *values.shape[1:]), pad)
        values = torch.cat([values, padding])
    return values.reshape(-1, size, *values.shape[1:])


def group_mean_abs(weight: Tensor, group_size: int, kernels: bool = True) -> Tensor:
    """Mean absolute value of every group, over the elements that are not exactly zero; 0 for a group of zeros.

    Zeros are what pruning leaves: they need no range, and would make that of the other elements too small.

    Args:
        weight: shape ``(O, ...)``, any floating dtype.
        group_size: filters a group; -1 for all.
        kernels: whether kernels may be used.

    Returns:
        float32, shape ``(G,)``.

    >>> group_mean_abs(torch.tensor([[1., -1.], [3., 3.], [-5., 5.]]), 2)
    tensor([2., 5.])
    >>> group_mean_abs(torch.tensor([[0., 0., -4., 0.], [0., 0., 0., 0.]]), 1)
    tensor([4., 0.])
    """
    filters = weight.shape[0]
    flat = weight.detach().reshape(filters, -1)
    totals, counts = per_group(operators(kernels).sum_and_count_rows(flat).t(), group_size).unbind(-1)
    return totals.sum(1) / counts.sum(1, dtype=torch.float64).float().clamp(min=1)


def group_max_abs(weight: Tensor, group_size: int) -> Tensor:
    """Largest absolute value of every group: float32, shape ``(G,)``."""
    largest = weight.detach().reshape(weight.shape[0], -1).abs().amax(1).float()
    return per_group(largest, group_size).amax(1)


def broadcast_filters(values: Tensor, weight: Tensor) -> Tensor:
    """View one value per filter, shape ``(O,)``, so that it broadcasts against ``weight``."""
    return values.reshape(-1, *[1] * (weight.dim() - 1))
