"""Cut regions out of feature maps as ``mmcv.ops.RoIAlign`` does, bit for bit."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

F32 = np.float32
MAX_VALUES = 1 << 16
"""Values that are gathered at a time; they stay in the cache."""


def extract_regions(features: Sequence[np.ndarray], rois: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    """Cut each region out of the level that fits its size.

    Args:
        features: one map a level, shape ``(C, H, W)``.
        rois: shape ``(N, 4)``, in pixels of the network.
        spec: ``strides`` of the levels, ``size`` of the result (height, width), ``sampling_ratio``, ``aligned``,
            ``finest_scale`` (of the first level).

    Returns:
        Shape ``(N, C, *size)``.
    """
    strides = spec['strides']
    result = np.zeros((len(rois), len(features[0]), *spec['size']), F32)
    levels = level_of(rois, len(strides), spec['finest_scale'])
    for level, stride in enumerate(strides):
        index = np.flatnonzero(levels == level)
        if len(index):
            result[index] = roi_align(features[level], rois[index], 1 / stride, spec)
    return result


def level_of(rois: np.ndarray, levels: int, finest_scale: float) -> np.ndarray:
    """Choose the level of each region by its size.

    >>> level_of(np.float32([[0, 0, 56, 56], [0, 0, 112, 112], [0, 0, 900, 900]]), 3, 56)
    array([0, 1, 2])
    """
    size = np.sqrt((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1]))
    return np.clip(np.floor(np.log2(size / F32(finest_scale) + F32(1e-6))), 0, levels - 1).astype(int)


def roi_align(feature: np.ndarray, rois: np.ndarray, scale: float, spec: Mapping[str, Any]) -> np.ndarray:
    """Average bilinear samples in each bin of each region of one map.

    Args:
        feature: shape ``(C, H, W)``.
        rois: shape ``(N, 4)``.
        scale: pixels of the map for one pixel of the regions.
        spec: ``size``, ``sampling_ratio`` (0: as many samples as pixels) and ``aligned``.
    """
    offset = F32(0.5 if spec['aligned'] else 0)
    edges = rois.astype(F32) * F32(scale) - offset
    start, extent = edges[:, :2], edges[:, 2:] - edges[:, :2]
    if not spec['aligned']:
        extent = np.maximum(extent, F32(1))
    out = np.asarray(spec['size'][::-1])  # across, down
    bins = extent / out.astype(F32)
    samples = spec['sampling_ratio']
    grids = np.full((len(rois), 2), samples) if samples > 0 else np.ceil(bins).astype(int)
    channels_last = np.ascontiguousarray(feature.transpose(1, 2, 0))
    result = np.zeros((len(rois), len(feature), *spec['size']), F32)
    step = max(1, MAX_VALUES // (len(feature) * int(out.prod())))
    for grid in np.unique(grids[(grids > 0).all(1)], axis=0):
        index = np.flatnonzero((grids == grid).all(1))
        for i in range(0, len(index), step):
            some = index[i : i + step]
            result[some] = _averages(channels_last, start[some], bins[some], grid, out)
    return result


def _averages(feature: np.ndarray, start: np.ndarray, bins: np.ndarray, grid: np.ndarray, out: np.ndarray):
    """The bins of regions that have the same number of samples, shape ``(N, C, down, across)``."""
    total, value, corner = (np.zeros((len(start), out[1], out[0], feature.shape[2]), F32) for _ in range(3))
    for row in range(grid[1]):
        y = _positions(start[:, 1], bins[:, 1], out[1], row, grid[1])
        for column in range(grid[0]):
            x = _positions(start[:, 0], bins[:, 0], out[0], column, grid[0])
            total += _samples(feature, y, x, value, corner)
    total /= F32(grid.prod())
    return total.transpose(0, 3, 1, 2)


def _positions(start: np.ndarray, size: np.ndarray, bins: int, sample: int, samples: int) -> np.ndarray:
    """Where one sample of each bin lies, shape ``(N, bins)``."""
    number = np.arange(bins, dtype=F32)
    return start[:, None] + number * size[:, None] + (F32(sample) + F32(0.5)) * size[:, None] / F32(samples)


def _samples(feature: np.ndarray, y: np.ndarray, x: np.ndarray, value: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Write interpolated values at all pairs of ``y`` and ``x`` into ``value``; 0 outside.

    Args:
        feature: shape ``(H, W, C)``.
        y: shape ``(N, down)``.
        x: shape ``(N, across)``.
        value: shape ``(N, down, across, C)``.
        corner: room for as much.
    """
    top, bottom, below, inside_y = _neighbours(y, feature.shape[0])
    left, right, beside, inside_x = _neighbours(x, feature.shape[1])
    inside = inside_y[:, :, None] & inside_x[:, None, :]
    pixels = feature.reshape(-1, feature.shape[2])
    into = value
    for row, height in ((top, 1 - below), (bottom, below)):
        for column, width in ((left, 1 - beside), (right, beside)):
            weight = np.where(inside, height[:, :, None] * width[:, None, :], F32(0))
            np.take(pixels, row[:, :, None] * feature.shape[1] + column[:, None, :], 0, into, 'clip')
            into *= weight[..., None]
            if into is corner:
                value += corner
            into = corner
    return value


def _neighbours(position: np.ndarray, size: int):
    inside = (position >= -1) & (position <= size)
    position = np.maximum(position, F32(0))
    low = np.minimum(np.where(inside, position, 0).astype(int), size - 1)
    weight = np.where(low >= size - 1, F32(0), position - low.astype(F32)).astype(F32)
    return low, np.minimum(low + 1, size - 1), weight, inside
