"""``'minmax'``: the largest magnitude, so that nothing is clipped."""

import torch
from torch import Tensor

from ..groups import group_max_abs
from ..specs import ActivationSpec, WeightSpec
from .rule import MAX, Range, RangeRule, register_range_rule


@register_range_rule('minmax')
class MinMax(RangeRule):
    """``max|W_g|`` and ``max|A|``. Statistic: ``(max|A|, 1)``, of which the larger one counts."""

    affine = True
    reduction = MAX

    def of_weight(self, weight: Tensor, spec: WeightSpec) -> Tensor:
        return group_max_abs(weight, spec.group_size)

    def collect(self, x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
        low, high = x.aminmax()
        pair = torch.ones(2, dtype=torch.float64, device=x.device)
        pair[0] = torch.maximum(high, -low).float()
        return pair

    def range_of(self, statistic: Tensor, spec: ActivationSpec, signed: bool) -> Range:
        largest, seen = torch.unbind(statistic, -1)
        return Range.up_to(largest / seen, signed)
