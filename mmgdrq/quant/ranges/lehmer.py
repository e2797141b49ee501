"""``'lehmer'``: k times the Lehmer mean of order 3 of the magnitudes, sum|A|^3 / sum(A^2)."""

import torch
from torch import Tensor

from ...kernels.dispatch import operators
from ..specs import ActivationSpec
from .rule import POWERS, Range, RangeRule, register_range_rule

LEHMER_K = {2: 1.2, 3: 1.5, 4: 1.8, 5: 2.1, 6: 2.3, 7: 2.5, 8: 2.7}
"""bits -> threshold in units of the Lehmer mean of order 3, for unsigned activations: the least squared error for a
half-normal distribution, which is what a ReLU leaves of a Gaussian."""

SIGNED_K = {2: 1.3, 3: 1.5, 4: 1.7, 5: 1.9, 6: 2.1, 7: 2.3, 8: 2.5}
"""The same for signed activations and a Gaussian: such a grid ends a step below its threshold, so it takes more."""


@register_range_rule('lehmer')
class Lehmer(RangeRule):
    """Does not depend on how sparse A is, and grows with its tail. Statistic: ``(sum|A|^3, sum(A^2))``."""

    uses_k = True
    by_product = POWERS

    def default_k(self, bits: int, signed: bool) -> float:
        return SIGNED_K[bits] if signed else LEHMER_K[bits]

    def collect(self, x: Tensor, spec: ActivationSpec, signed: bool) -> Tensor:
        return operators(self.kernels).power_sums(x.float())

    def range_of(self, statistic: Tensor, spec: ActivationSpec, signed: bool) -> Range:
        total, count = torch.unbind(statistic, -1)
        return Range.up_to(total / count * spec.multiplier(signed), signed)
