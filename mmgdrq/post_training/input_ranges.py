"""Collect what the inputs of all layers are like over all batches, and set their ranges from it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Optional, Union

import torch
from torch import Tensor, nn

from ..errors import QuantizationError
from ..layers import ActivationQuantizer, AffineQuantizer
from ..layers.walk import all_modules
from ..quant.ranges.histogram import Bins, channel_histograms, histogram

CHANNEL_BINS = Bins(mantissa=3)
"""Bins of the histogram of one channel: coarse, as there are hundreds of them."""


class ThresholdStatistics:
    """What the calls of one layer have seen: all elements count the same, whatever batch they came in.

    Args:
        quantizer: that of the input.
    """

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        self.quantizer = quantizer
        self.lowest = self.highest = 0.0
        self.statistic = torch.zeros(quantizer.rule.shape, dtype=torch.float64, device=quantizer.threshold.device)

    def add(self, x: Tensor) -> None:
        """Add the input of one call, which is not empty."""
        lowest, highest = x.aminmax()
        _check_finite(self.quantizer, lowest, highest)
        self.lowest, self.highest = min(self.lowest, lowest.item()), max(self.highest, highest.item())
        rule = self.quantizer.rule
        self.statistic = rule.combine(self.statistic, rule.collect(x, self.quantizer.spec, False))

    def set_range(self) -> None:
        """Set the range of the quantizer, if it was called with more than zeros."""
        if self.lowest == self.highest == 0:
            return
        spec = self.quantizer.spec
        signed = self.lowest < 0 if spec.signed == 'auto' else bool(spec.signed)
        self.quantizer.set_range(self.quantizer.rule.range_of(self.statistic, spec, signed).high, signed)


class EndStatistics:
    """The lowest and the highest value, and a histogram where percentiles of it are asked for; for each channel or all.

    Args:
        quantizer: that of the input.
    """

    def __init__(self, quantizer: AffineQuantizer) -> None:
        self.quantizer = quantizer
        self.ends: Optional[tuple[Tensor, Tensor]] = None
        self.counts: Optional[Tensor] = None

    def add(self, x: Tensor) -> None:
        """Add the input of one call, which is not empty."""
        quantizer = self.quantizer
        axis = -1 - quantizer.trailing
        if quantizer.channels:
            others = [dim for dim in range(x.dim()) if dim != x.dim() + axis]
            low, high = x.amin(others), x.amax(others)
        else:
            low, high = x.aminmax()
        _check_finite(quantizer, low, high)
        if self.ends is not None:
            low, high = torch.minimum(low, self.ends[0]), torch.maximum(high, self.ends[1])
        self.ends = low, high
        if quantizer.rule.by_histogram:
            counts = channel_histograms(x, CHANNEL_BINS, axis).int() if quantizer.channels else histogram(x)
            self.counts = counts if self.counts is None else self.counts.add_(counts)

    def set_range(self) -> None:
        """Set the range of the quantizer, if it was called."""
        if self.ends is None:
            return
        low, high = self.ends
        if self.counts is not None:
            bins = CHANNEL_BINS if self.quantizer.channels else Bins()
            found = self.quantizer.rule.ends(self.counts, self.quantizer.spec, bins)
            low, high = torch.maximum(low, found.low), torch.minimum(high, found.high)
        self.quantizer.set_range(low, high)


Statistics = Union[ThresholdStatistics, EndStatistics]


@contextmanager
def collecting(model: nn.Module) -> Iterator[list[Statistics]]:
    """While active, the calls of all layers whose input is quantized are added up; the model must be in float."""
    statistics: list[Statistics] = []
    for module in all_modules(model):
        if isinstance(module, ActivationQuantizer):
            statistics.append(ThresholdStatistics(module))
        elif isinstance(module, AffineQuantizer):
            statistics.append(EndStatistics(module))
    hooks = [s.quantizer.register_forward_pre_hook(_adding(s)) for s in statistics]
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()


def _adding(statistic: Statistics) -> Callable[[nn.Module, tuple], None]:
    def hook(_: nn.Module, args: tuple) -> None:
        if args[0].numel():
            statistic.add(args[0].detach())

    return hook


def _check_finite(quantizer: Union[ActivationQuantizer, AffineQuantizer], low: Tensor, high: Tensor) -> None:
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
        raise QuantizationError(
            f'{quantizer.layer_name or "a quantized layer"}: its input is not finite, so it has no range. Check the '
            'images, their normalization and the checkpoint'
        )
