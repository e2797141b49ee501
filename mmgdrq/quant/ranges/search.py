"""``'search'``: the range with the least quantized-loss."""

import torch
from torch import Tensor

from ..specs import ActivationSpec, WeightSpec
from .histogram import LOWEST, Bins, finite_histogram, search_threshold
from .rule import Range, RangeRule, register_range_rule
from .squared_error import improve_weight_range, search_weight_range

BINS = Bins(mantissa=5)
"""Bins of inputs; the threshold has 0.2 % more error than that of finer ones at most."""


@register_range_rule('search')
class Search(RangeRule):
    """The least error of all elements of all calls and ranks. Statistic of inputs: a histogram."""

    improves = True
    shape = (2 * BINS.half,)

    def of_weight(self, weight: Tensor, spec: WeightSpec) -> Tensor:
        return search_weight_range(weight, spec, self.kernels)

    def improve(self, weight: Tensor, alpha: Tensor, spec: WeightSpec) -> Tensor:
        return improve_weight_range(weight, alpha, spec, self.kernels)

    def collect(self, x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
        return finite_histogram(x, BINS)

    def is_empty(self, statistic: Tensor) -> Tensor:
        return statistic.sum(-1) == 0

    def range_of(self, statistic: Tensor, spec: ActivationSpec, signed: bool) -> Range:
        grid = spec.levels(signed), spec.code_limits(signed)
        found = [search_threshold(counts, *grid, spec.p, BINS) for counts in statistic.reshape(-1, *self.shape)]
        total = statistic.sum(-1)
        usable = total * 0 + 1  # not where an element was not finite
        # what is below the bins counts as zero, but is not
        threshold = torch.stack(found).view_as(total).clamp(min=2.0**LOWEST)
        return Range.up_to(torch.where(total == 0, torch.nan, threshold * usable), signed)
