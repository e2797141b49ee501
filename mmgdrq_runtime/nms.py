"""Suppress overlapping boxes by the rules of ``mmcv.ops.batched_nms``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

ROWS = 128
"""Boxes that are compared with all later ones at a time."""


def by_score(scores: np.ndarray) -> np.ndarray:
    """Indices from the highest score to the lowest; of equal ones the first comes first."""
    return np.argsort(-scores, kind='stable')


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Keep boxes that overlap no better one.

    Args:
        boxes: shape ``(N, 4)``, float32, corners ``x1, y1, x2, y2``.
        scores: shape ``(N,)``.
        threshold: boxes of a larger intersection over union are suppressed.

    Returns:
        Indices of the kept boxes, from the highest score to the lowest.
    """
    order = by_score(scores)
    boxes = boxes[order]
    alive = np.ones(len(order), bool)
    for start in range(0, len(order), ROWS):
        rows = start + np.flatnonzero(alive[start : start + ROWS])
        overlaps = iou(boxes[rows], boxes[start:]) > np.float32(threshold)
        for row, overlapped in zip(rows, overlaps):
            if alive[row]:
                alive[row + 1 :] &= ~overlapped[row + 1 - start :]
    return order[alive]


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of all pairs, shape ``(len(boxes), len(others))``; NaN without an area."""
    x1, y1, x2, y2 = boxes.T[:, :, None]
    u1, v1, u2, v2 = others.T
    with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
        width = np.maximum(np.minimum(x2, u2) - np.maximum(x1, u1), 0)
        height = np.maximum(np.minimum(y2, v2) - np.maximum(y1, v1), 0)
        inside = width * height
        return inside / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inside)


def batched_nms(boxes: np.ndarray, scores: np.ndarray, ids: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """Keep boxes that overlap no better one of the same id.

    Boxes of different ids are moved apart by an offset, as mmcv does it: with negative coordinates a box may still
    suppress one of another id.

    Args:
        boxes: shape ``(N, 4)``, float32.
        scores: shape ``(N,)``, float32.
        ids: shape ``(N,)``; the class or the level of each box.
        settings: ``iou_threshold``; ``class_agnostic``: ids do not count; ``split_thr``: from so many boxes on each
            id is treated alone; ``max_num``: so many are kept at most, -1: all.

    Returns:
        Indices of the kept boxes, from the highest score to the lowest.
    """
    if not len(boxes):
        return np.zeros(0, int)
    threshold, limit = settings['iou_threshold'], settings['max_num']
    shifted = boxes if settings['class_agnostic'] else _moved_apart(boxes, ids)
    together = settings['class_agnostic'] or boxes.min() < 0  # else boxes of different ids do not meet
    if together and len(boxes) < settings['split_thr']:
        kept = nms(shifted, scores, threshold)
    else:
        kept = _each_id(shifted, scores, ids, threshold)
    return kept[:limit] if limit > 0 else kept


def _moved_apart(boxes: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return boxes + (ids.astype(np.float32) * (boxes.max() + np.float32(1)))[:, None]


def _each_id(boxes: np.ndarray, scores: np.ndarray, ids: np.ndarray, threshold: float) -> np.ndarray:
    parts = []
    for number in np.unique(ids):
        of_this = np.flatnonzero(ids == number)
        parts.append(of_this[nms(boxes[of_this], scores[of_this], threshold)])
    kept = np.sort(np.concatenate(parts))
    return kept[by_score(scores[kept])]
