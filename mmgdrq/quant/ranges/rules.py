"""Compute the range of a weight by the rule of its spec."""

from torch import Tensor

from ..groups import group_max_abs, group_mean_abs
from ..specs import WeightSpec
from .squared_error import search_weight_range


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
    return search_weight_range(weight, spec)
