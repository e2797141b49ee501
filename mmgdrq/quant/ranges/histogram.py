"""A histogram of all elements of an activation, which calls, batches and ranks add up exactly.

Its bins are fixed, whatever the data: sign, exponent and the first bits of the mantissa of a float32, so that two
histograms add up bin by bin, and every bin has the same relative width. Percentiles and the squared error of any grid
follow from it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fake_quant import round_to_grid
from .squared_error import COARSE, FINE, LARGEST, SMALLEST

MANTISSA = 7
"""Bits of the mantissa that a bin keeps: it is 1/128 of its lower end wide, or less."""

LOWEST, HIGHEST = -30, 30
"""Exponents that have bins of their own; smaller magnitudes count as zero, larger ones are in the last bin."""

CHUNK = 2**20
"""Elements that are counted at a time, which bounds the memory."""


@dataclass(frozen=True)
class Bins:
    """Bins of a histogram.

    Attributes:
        mantissa: bits of the mantissa that they keep.

    >>> Bins(mantissa=2).edges()[:3].tolist()
    [0.0, 9.313225746154785e-10, 1.1641532182693481e-09]
    """

    mantissa: int = MANTISSA

    @property
    def half(self) -> int:
        """Number of bins of one sign; the first one is zero and what counts as zero."""
        return ((HIGHEST - LOWEST) << self.mantissa) + 1

    def edges(self, device=None) -> Tensor:
        """Lower end of the magnitudes of every bin of one sign, and the upper end of the last one, float64."""
        steps = torch.arange(self.half, device=device, dtype=torch.float64)
        octave = torch.floor(steps / 2**self.mantissa)
        edges = torch.exp2(octave + LOWEST) * (1 + steps / 2**self.mantissa - octave)
        return torch.cat([edges.new_zeros(1), edges])

    def index(self, x: Tensor) -> Tensor:
        """Bin of every element, int64 of the shape of ``x``: negative values behind the positive ones."""
        magnitude = x.float().abs().view(torch.int32) >> (23 - self.mantissa)
        first = (LOWEST + 127) << self.mantissa
        bins = (magnitude - (first - 1)).clamp_(0, self.half - 1).long()
        return torch.where(x < 0, bins + self.half, bins)

    def of_words(self, counts: Tensor) -> Tensor:
        """Add up what :func:`_count_words` has counted to these bins."""
        first, last = (LOWEST + 127) << self.mantissa, (HIGHEST + 127) << self.mantissa
        signs = counts.view(2, -1).flip(0)  # the sign bit is set in the first half
        small, large = signs[:, :first].sum(1, keepdim=True), signs[:, last - 1 :].sum(1, keepdim=True)
        return torch.cat([small, signs[:, first : last - 1], large], 1).flatten()


def histogram(x: Tensor, bins: Bins = Bins()) -> Tensor:
    """Count the elements of ``x``, which are finite.

    Args:
        x: any shape.
        bins: the bins.

    Returns:
        int64, shape ``(2 * bins.half,)``.

    >>> int(histogram(torch.tensor([0.0, -1.0, 2.0])).sum())
    3
    """
    parts = x.detach().reshape(-1).split(CHUNK)
    if x.device.type == 'cpu' and not torch.compiler.is_compiling():
        return bins.of_words(torch.stack([_count_words(part, bins) for part in parts]).sum(0))
    counts = torch.zeros(2 * bins.half, dtype=torch.int64, device=x.device)
    for part in parts:
        counts += _count_in_lanes(bins.index(part), len(counts))
    return counts


def _count_words(x: Tensor, bins: Bins) -> Tensor:
    """Count the first bits of the float32 words, which takes fewer passes than to find the bins."""
    words = x.float().view(torch.int32) >> (23 - bins.mantissa)  # signed, so that negative values come first
    half = 1 << (8 + bins.mantissa)
    return torch.bincount(words.add_(half), minlength=2 * half)


LANES = 64
"""Histograms that a GPU counts side by side, as many zeros would wait for each other in one."""


def _count_in_lanes(index: Tensor, size: int) -> Tensor:
    """Count indices without a device synchronization, which ``torch.bincount`` makes on a GPU."""
    lanes = torch.arange(len(index), device=index.device) % LANES * size
    counts = torch.zeros(LANES * size, dtype=torch.int32, device=index.device)
    counts.scatter_add_(0, index + lanes, torch.ones_like(index, dtype=torch.int32))
    return counts.view(LANES, size).sum(0)


def finite_histogram(x: Tensor, bins: Bins) -> Tensor:
    """:func:`histogram` as float64; all counts are NaN where an element is not finite."""
    lowest, highest = x.aminmax()
    return histogram(x, bins).double() + (lowest * 0 + highest * 0).double()


def channel_histograms(x: Tensor, bins: Bins, axis: int = 1) -> Tensor:
    """Count the elements of every channel.

    Args:
        x: any shape.
        bins: the bins.
        axis: dimension of the channels.

    Returns:
        int64, shape ``(C, 2 * bins.half)``.
    """
    rows = x.detach().movedim(axis, 0)
    counts = torch.zeros(len(rows), 2 * bins.half, dtype=torch.int64, device=x.device)
    block = max(CHUNK * len(rows) // max(x.numel(), 1), 1)  # channels that are copied at a time
    for start in range(0, len(rows), block):
        some = rows[start : start + block].flatten(1)
        offsets = torch.arange(len(some), device=x.device).unsqueeze(1) * counts.shape[1]
        for part in some.split(max(CHUNK // len(some), 1), dim=1):
            found = torch.bincount((bins.index(part) + offsets).flatten(), minlength=len(some) * counts.shape[1])
            counts[start : start + block] += found.view(len(some), -1)
    return counts


def points(counts: Tensor, bins: Bins = Bins(), each: int = 4) -> tuple[Tensor, Tensor]:
    """Values that stand for the elements of a histogram, and how many elements each stands for.

    A bin is several steps of a fine grid wide where it lies far from zero, so that one value would not do.

    Args:
        counts: shape ``(2 * bins.half,)``.
        bins: its bins.
        each: values a bin, evenly spread over it.

    Returns:
        values and weights, float64, ascending by magnitude within a sign; on a CPU those of empty bins are left out.
    """
    edges = bins.edges(counts.device)
    places = (torch.arange(each, device=counts.device, dtype=torch.float64) + 0.5) / each
    values = edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * places
    values[0] = 0
    values = torch.cat([values, -values])
    weights = (counts.double() / each)[:, None].expand_as(values)
    if counts.device.type != 'cpu':  # to choose some would be a synchronization
        return values.flatten(), weights.flatten()
    used = counts > 0
    return values[used].flatten(), weights[used].flatten()


def percentile_of(counts: Tensor, share: float, bins: Bins = Bins()) -> Tensor:
    """Value below which ``share`` of the elements lie, interpolated within its bin.

    Args:
        counts: shape ``(..., 2 * bins.half)``, with any elements.
        share: from 0 to 1.
        bins: the bins.

    Returns:
        float32, shape ``(...)``.
    """
    half, edges = bins.half, bins.edges(counts.device)
    ascending = torch.cat([counts[..., half:].flip(-1), counts[..., :half]], -1).double()
    lower = torch.cat([-edges[1:].flip(0), edges[:-1]])
    upper = torch.cat([-edges[:-1].flip(0), edges[1:]])
    lower[half], upper[half] = 0, 0  # what counts as zero
    total = ascending.cumsum(-1)
    wanted = (share * total[..., -1:]).clamp(min=1e-6)  # not in an empty bin before the first element
    bin_ = (total < wanted).sum(-1, keepdim=True).clamp_(max=2 * half - 1)
    inside = ascending.gather(-1, bin_)
    part = (1 - (total.gather(-1, bin_) - wanted) / inside.clamp(min=1)).clamp_(0, 1)
    return torch.lerp(lower[bin_], upper[bin_], part).squeeze(-1).float()


def widest(counts: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """Lower end of the lowest bin with an element and upper end of the highest one, float32, shape ``(...)``."""
    edges = bins.edges(counts.device)[1:]
    positive, negative = ((edges * (part > 0)).amax(-1) for part in counts.split(bins.half, -1))
    return -negative.float(), positive.float()


def search_threshold(counts: Tensor, levels: int, limits: tuple[int, int], p: int = 2, bins: Bins = Bins()) -> Tensor:
    """Threshold of the symmetric or unsigned grid with the least error ``sum |x - Q(x)|^p`` over a histogram.

    The candidates are those of :func:`~mmgdrq.quant.ranges.squared_error.search_range`.

    Args:
        counts: shape ``(2 * bins.half,)``.
        levels: steps between 0 and the threshold.
        limits: lowest and highest code.
        p: 1 or 2.
        bins: the bins.

    Returns:
        float32 scalar; 0 where all elements are zero.
    """
    values, weights = points(counts, bins)
    largest = (values.abs() * (weights > 0)).max() if len(values) else values.new_zeros(())

    def error(alpha: Tensor) -> Tensor:
        rounded = round_to_grid(values, alpha / levels, limits, kernels=False)  # there are none for float64
        return (weights * (rounded - values).abs() ** p).sum()

    def best_of(candidates: Tensor) -> Tensor:
        best = torch.stack([error(alpha) for alpha in candidates]).argmin(0, keepdim=True)
        return candidates.gather(0, best).squeeze(0)  # an index without dimensions would be a synchronization

    low, high = math.log10(SMALLEST), math.log10(LARGEST)
    best = best_of(largest * torch.logspace(high, low, COARSE, device=counts.device, dtype=torch.float64))
    ratio = 10 ** ((high - low) / (COARSE - 1))
    return best_of(best * torch.linspace(1 / ratio, ratio, FINE, device=counts.device, dtype=torch.float64)).float()
