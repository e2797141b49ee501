"""Paste predicted masks into the image, as mmdet does with ``grid_sample``."""

import math
from typing import Any

import numpy as np

F32 = np.float32


def paste(probability: np.ndarray, boxes: np.ndarray, shape: tuple[int, int], threshold: float) -> np.ndarray:
    """Resize each mask to its box.

    Args:
        probability: shape ``(N, h, w)``, float32.
        boxes: shape ``(N, 4)``, in pixels of the image.
        shape: height and width of the image.
        threshold: a pixel belongs to the object from this probability on.

    Returns:
        Shape ``(N, *shape)``, bool.
    """
    result = np.zeros((len(boxes), *shape), bool)
    for mask, box, image in zip(probability, boxes, result):
        x0, y0 = (max(math.floor(value) - 1, 0) for value in box[:2])
        x1, y1 = max(min(math.ceil(box[2]) + 1, shape[1]), x0), max(min(math.ceil(box[3]) + 1, shape[0]), y0)
        y, x = _taps(y0, y1, box[1], box[3], mask.shape[0]), _taps(x0, x1, box[0], box[2], mask.shape[1])
        image[y0:y1, x0:x1] = _sample(mask, y, x) >= F32(threshold)
    return result


def _taps(begin: int, end: int, low: np.float32, high: np.float32, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels ``begin ... end`` lie in a mask: the index before them, and the weight of the next one."""
    pixel = np.arange(begin, end).astype(F32) + F32(0.5)
    with np.errstate(divide='ignore', invalid='ignore'):
        place = (pixel - low) / (high - low) * 2 - 1
    place[np.isinf(place)] = 0
    position = ((place + 1) * F32(size) - 1) / 2
    position = np.nan_to_num(position, nan=-2.0).clip(-2, size + 1)  # beyond that it is 0 all the same
    before = np.floor(position)
    return before.astype(int), position - before


def _sample(mask: np.ndarray, y: tuple[np.ndarray, np.ndarray], x: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    around = np.pad(mask, 3)  # zeros beside the mask, so that every index exists
    (top, below), (left, beside) = y, x
    value: Any = 0
    for row, height in ((top, 1 - below), (top + 1, below)):
        for column, width in ((left, 1 - beside), (left + 1, beside)):
            value = value + around[np.ix_(row + 3, column + 3)] * (height[:, None] * width)
    return value
