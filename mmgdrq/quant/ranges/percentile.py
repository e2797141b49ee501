"""``'percentile'``: the percentiles of all elements, so that a few outliers are clipped."""

import torch
from torch import Tensor

from ..specs import ActivationSpec
from .histogram import Bins, histogram, percentile_of
from .rule import Range, RangeRule, register_range_rule

BINS = Bins()


@register_range_rule('percentile')
class Percentile(RangeRule):
    """From the lower to the upper percentile. Statistic: a histogram."""

    affine = True
    by_histogram = True
    shape = (2 * BINS.half,)

    def collect(self, x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
        return histogram(x, BINS).double()

    def is_empty(self, statistic: Tensor) -> Tensor:
        return statistic.sum(-1) == 0

    def range_of(self, statistic: Tensor, spec: ActivationSpec, signed: bool) -> Range:
        found = self.ends(statistic, spec)
        threshold = torch.maximum(found.high, -found.low)
        return Range.up_to(torch.where(self.is_empty(statistic), torch.nan, threshold), signed)

    def ends(self, counts: Tensor, spec: ActivationSpec, bins: Bins = BINS) -> Range:
        share = spec.percentile / 100
        return Range(percentile_of(counts, 1 - share, bins), percentile_of(counts, share, bins))
