"""Priors (anchors and points), and the boxes that a network predicts from them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .activations import exp, softmax

F32 = np.float32
Shape = tuple[int, int]
"""Height and width in pixels."""


def anchors_at(base: Sequence[Sequence[float]], stride: Sequence[float], width: int, index: np.ndarray) -> np.ndarray:
    """Compute the anchors of one level at some locations.

    Args:
        base: anchors of the location (0, 0), ``x1, y1, x2, y2``.
        stride: pixels between two locations, across and down.
        width: locations in a row.
        index: which anchors, counted row by row, at each location all of ``base``.

    Returns:
        Shape ``(len(index), 4)``, float32.
    """
    place, number = np.divmod(index, len(base))
    shift = np.stack([place % width, place // width], 1).astype(F32) * np.asarray(stride, F32)
    return np.asarray(base, F32)[number] + np.tile(shift, 2)


def points_at(stride: Sequence[float], offset: float, width: int, index: np.ndarray) -> np.ndarray:
    """Compute the points of one level at some locations, shape ``(len(index), 2)``, float32.

    Args:
        stride: pixels between two locations, across and down.
        offset: of the first point, in strides.
        width: locations in a row.
        index: which points, counted row by row.
    """
    place = np.stack([index % width, index // width], 1)
    return (place.astype(F32) + F32(offset)) * np.asarray(stride, F32)


def decode_deltas(priors: np.ndarray, deltas: np.ndarray, coder: Mapping[str, Any], shape: Shape) -> np.ndarray:
    """Move and scale boxes by predicted deltas, as ``DeltaXYWHBBoxCoder`` does.

    Args:
        priors: shape ``(N, 4)``.
        deltas: shape ``(N, 4)``: of the center, in widths and heights; logarithms of the scales.
        coder: ``means``, ``stds``, ``max_ratio`` (limit of the logarithms), ``center_clamp`` (limit of the move in
            pixels, or None), ``clip`` (to the image).
        shape: of the image.
    """
    deltas = deltas * np.asarray(coder['stds'], F32) + np.asarray(coder['means'], F32)
    size = priors[:, 2:] - priors[:, :2]
    limit, clamp = F32(coder['max_ratio']), coder['center_clamp']
    move = size * deltas[:, :2]
    if clamp is not None:
        move, scale = np.clip(move, -F32(clamp), F32(clamp)), np.minimum(deltas[:, 2:], limit)
    else:
        scale = np.clip(deltas[:, 2:], -limit, limit)
    center = (priors[:, :2] + priors[:, 2:]) * F32(0.5) + move
    half = size * exp(scale) * F32(0.5)
    boxes = np.concatenate([center - half, center + half], 1)
    return clip(boxes, shape) if coder['clip'] else boxes


def decode_distances(points: np.ndarray, distances: np.ndarray, coder: Mapping[str, Any], shape: Shape) -> np.ndarray:
    """Turn distances of the left, top, right and bottom edge from a point into boxes, shape ``(N, 4)``."""
    boxes = np.concatenate([points - distances[:, :2], points + distances[:, 2:]], 1)
    return clip(boxes, shape) if coder['clip'] else boxes


def expected_distances(logits: np.ndarray, bins: int, stride: float) -> np.ndarray:
    """Compute the means of predicted distributions over ``0 ... bins - 1`` strides (GFL's integral).

    Args:
        logits: shape ``(N, 4 * bins)``.
        bins: of each distribution.
        stride: pixels a bin.
    """
    probability = softmax(logits.reshape(-1, bins))
    return (probability @ np.arange(bins, dtype=F32)).reshape(-1, 4) * F32(stride)


def centers(boxes: np.ndarray) -> np.ndarray:
    """Compute the centers of boxes, shape ``(N, 2)``."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def clip(boxes: np.ndarray, shape: Shape) -> np.ndarray:
    """Clip boxes to an image."""
    height, width = shape
    return np.clip(boxes, 0, np.asarray([width, height, width, height], F32))


def to_image(boxes: np.ndarray, scale_factor: tuple[float, float]) -> np.ndarray:
    """Multiply boxes by the inverse of a scale factor, which is how most heads rescale."""
    return boxes * np.tile(np.asarray([1 / s for s in scale_factor], F32), 2)


def divide(boxes: np.ndarray, scale_factor: tuple[float, float]) -> np.ndarray:
    """Divide boxes by a scale factor, as others do; it differs in the last bit."""
    return boxes / np.tile(np.asarray(scale_factor, F32), 2)
