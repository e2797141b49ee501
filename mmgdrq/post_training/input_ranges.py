"""Collect what the inputs of all layers are like over all batches, and set their ranges from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

import torch
from torch import Tensor, nn

from ..errors import QuantizationError
from ..layers import ActivationQuantizer
from ..layers.walk import activation_quantizers
from ..quant.ranges.histogram import histogram, search_threshold
from ..quant.ranges.statistics import add_statistic_, collect, threshold_of
from ..quant.specs import MEAN_RULES


class InputStatistics:
    """What the calls of one layer have seen: all elements count the same, whatever batch they came in.

    Args:
        quantizer: that of the input.
    """

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        self.quantizer = quantizer
        self.lowest = self.highest = 0.0
        self.sums = torch.zeros(2, dtype=torch.float64, device=quantizer.threshold.device)
        self.counts: Optional[Tensor] = None

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add the input of one call."""
        if x.numel() == 0:
            return
        lowest, highest = (end.item() for end in x.aminmax())
        if not abs(lowest) + abs(highest) < float('inf'):
            raise QuantizationError(
                f'{self.quantizer.layer_name or "a quantized layer"}: its input is not finite, so it has no range. '
                'Check the images, their normalization and the checkpoint'
            )
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        if self._by_histogram:
            counts = histogram(x)
            self.counts = counts if self.counts is None else self.counts + counts
        else:
            add_statistic_(self.sums, collect(x, self.quantizer.spec, False), self.quantizer.spec)

    @property
    def _by_histogram(self) -> bool:
        return self.quantizer.spec.range not in (*MEAN_RULES, 'minmax')

    def set_range(self) -> bool:
        """Set the range of the quantizer; False where the layer was not called, or has seen nothing but zeros."""
        if self.lowest == self.highest == 0:
            return False
        spec = self.quantizer.spec
        signed = self.lowest < 0 if spec.signed == 'auto' else spec.signed
        if self._by_histogram:
            assert self.counts is not None
            threshold = search_threshold(self.counts, spec.levels(signed), spec.code_limits(signed), spec.p)
        else:
            threshold = threshold_of(self.sums[0] / self.sums[1], spec, signed)
        self.quantizer.set_range(threshold, signed)
        return True


@contextmanager
def collecting(model: nn.Module) -> Iterator[list[InputStatistics]]:
    """While active, the calls of all layers whose input is quantized are added up; the model must be in float."""
    statistics = [InputStatistics(quantizer) for quantizer in activation_quantizers(model)]
    hooks = [s.quantizer.register_forward_pre_hook(lambda _, args, s=s: s.add(args[0])) for s in statistics]
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()
