"""Suppress overlapping boxes by the rules of ``mmcv.ops.batched_nms``."""

from collections.abc import Mapping
from typing import Any

import numpy as np


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
    x1, y1, x2, y2 = boxes[order].T
    area = (x2 - x1) * (y2 - y1)
    alive = np.ones(len(order), bool)
    limit = np.float32(threshold)
    with np.errstate(invalid='ignore', divide='ignore', over='ignore'):  # boxes without an area suppress nothing
        for i in range(len(order)):
            if not alive[i]:
                continue
            rest = slice(i + 1, None)
            width = np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest])
            height = np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest])
            inside = np.maximum(width, 0) * np.maximum(height, 0)
            alive[rest] &= ~(inside / (area[i] + area[rest] - inside) > limit)
    return order[alive]


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
