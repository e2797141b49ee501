"""``'percentile'``: the percentiles of all elements, so that a few outliers are clipped."""

import torch
from torch import Tensor

from ..specs import ActivationSpec
from .histogram import Bins, finite_histogram, percentile_of, widest
from .rule import Range, RangeRule, register_range_rule

BINS = Bins(mantissa=5)
"""Bins of inputs; a percentile is interpolated within one."""


@register_range_rule('percentile')
class Percentile(RangeRule):
    """From the lower to the upper percentile. Statistic: a histogram."""

    affine = True
    by_histogram = True
    shape = (2 * BINS.half,)

    def collect(self, x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
        return finite_histogram(x, BINS)

    def is_empty(self, statistic: Tensor) -> Tensor:
        return statistic.sum(-1) == 0

    def range_of(self, statistic: Tensor, spec: ActivationSpec, signed: bool) -> Range:
        found = self.ends(statistic, spec)
        threshold = torch.maximum(found.high, -found.low)
        usable = statistic.sum(-1) * 0 + 1  # not where an element was not finite
        return Range.up_to(torch.where(self.is_empty(statistic), torch.nan, threshold * usable), signed)

    def ends(self, counts: Tensor, spec: ActivationSpec, bins: Bins = BINS) -> Range:
        share = spec.percentile / 100
        low, high = percentile_of(counts, 1 - share, bins), percentile_of(counts, share, bins)
        nothing = (low == 0) & (high == 0)  # so few elements are not zero: a range without any would be of no use
        lowest, highest = widest(counts, bins)
        return Range(torch.where(nothing, lowest, low), torch.where(nothing, highest, high))
