"""``'mean'``: k times the mean magnitude, of a group of filters or of all elements of the inputs, zeros included."""

import torch
from torch import Tensor

from ...kernels.dispatch import operators
from ..groups import group_mean_abs
from ..specs import ActivationSpec, WeightSpec
from .active_mean import ACTIVE_MEAN_K, signed_bits
from .rule import MAGNITUDES, Range, RangeRule, register_range_rule

MEAN_K = {2: 6.0, 3: 9.0, 4: 12.0, 5: 14.0, 6: 16.0, 7: 18.0, 8: 20.0}
"""bits -> threshold in units of mean|A| over all elements, zeros included, for unsigned activations."""


@register_range_rule('mean')
class Mean(RangeRule):
    """``k * mean|W_g|``, the range of Scale-Clip; ``k * mean|A|`` with a statistic ``(sum|A|, elements)``."""

    uses_k = True
    by_product = MAGNITUDES
    is_mean = True

    def default_k(self, bits: int, signed: bool) -> float:
        return ACTIVE_MEAN_K[signed_bits(bits)] if signed else MEAN_K[bits]

    def of_weight(self, weight: Tensor, spec: WeightSpec) -> Tensor:
        return group_mean_abs(weight, spec.group_size, self.kernels) * spec.multiplier

    def collect(self, x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
        return self.of_by_product(operators(self.kernels).sum_and_count(x.float()), x.numel())

    def of_by_product(self, sums: Tensor, elements: int) -> Tensor:
        sums[1] = elements
        return sums

    def range_of(self, statistic: Tensor, spec: ActivationSpec, signed: bool) -> Range:
        total, count = torch.unbind(statistic, -1)
        return Range.up_to(total / count * spec.multiplier(signed), signed)
