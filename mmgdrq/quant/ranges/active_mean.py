"""``'active_mean'``: k times the mean magnitude of the elements that are not zero."""

import torch
from torch import Tensor

from ...kernels.dispatch import operators
from ..specs import ActivationSpec
from .rule import MAGNITUDES, Range, RangeRule, register_range_rule

ACTIVE_MEAN_K = {2: 2.5, 3: 3.5, 4: 5.0, 5: 5.5, 6: 6.0, 7: 7.0, 8: 8.0}
"""bits -> threshold in units of the mean of the non-zero |A|, for unsigned activations.

A signed grid spends one bit on the sign and takes the multiplier of ``bits - 1`` (2 bits: that of 2)."""


def signed_bits(bits: int) -> int:
    """Bits of the unsigned grid with as many steps up to the threshold."""
    return max(bits - 1, 2)


@register_range_rule('active_mean')
class ActiveMean(RangeRule):
    """Does not depend on how sparse a ReLU made A. Statistic: ``(sum|A|, elements that are not zero)``."""

    uses_k = True
    by_product = MAGNITUDES

    def default_k(self, bits: int, signed: bool) -> float:
        return ACTIVE_MEAN_K[signed_bits(bits) if signed else bits]

    def collect(self, x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
        return operators(self.kernels).sum_and_count(x.float())

    def range_of(self, statistic: Tensor, spec: ActivationSpec, signed: bool) -> Range:
        total, count = torch.unbind(statistic, -1)
        return Range.up_to(total / count * spec.multiplier(signed), signed)
