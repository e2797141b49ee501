"""``'search'``: the range with the least quantized-loss."""

import torch
from torch import Tensor

from ..specs import ActivationSpec, WeightSpec
from .rule import Range, RangeRule, register_range_rule
from .squared_error import improve_weight_range, search_range, search_weight_range

SAMPLE = 4096
"""Elements of an activation that a search looks at, evenly spread."""


@register_range_rule('search')
class Search(RangeRule):
    """Of inputs it gives the mean of the ranges that were found for the calls and ranks, weighted by their elements.

    Statistic: ``(range * elements, elements)``.
    """

    improves = True

    def of_weight(self, weight: Tensor, spec: WeightSpec) -> Tensor:
        return search_weight_range(weight, spec, self.kernels)

    def improve(self, weight: Tensor, alpha: Tensor, spec: WeightSpec) -> Tensor:
        return improve_weight_range(weight, alpha, spec, self.kernels)

    def collect(self, x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
        flat = x.reshape(-1)
        stride = max(flat.numel() // SAMPLE, 1) | 1  # odd, so that it does not follow one image column
        sample = flat[::stride].unsqueeze(0)
        pair = torch.empty(2, dtype=torch.float64, device=x.device)
        pair[1] = x.numel()
        grid = spec.levels(signed), spec.code_limits(signed)
        pair[0] = search_range(sample, *grid, spec.p, kernels=self.kernels)[0] * x.numel()
        return pair

    def range_of(self, statistic: Tensor, spec: ActivationSpec, signed: bool) -> Range:
        total, count = torch.unbind(statistic, -1)
        return Range.up_to(total / count, signed)
