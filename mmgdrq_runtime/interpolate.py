"""Resize maps as ``torch.nn.functional.interpolate`` with ``mode='bilinear'`` does."""

import numpy as np

F32 = np.float32


def interpolate(maps: np.ndarray, shape: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Resize maps bilinearly.

    Args:
        maps: shape ``(C, H, W)``, float32.
        shape: height and width of the result.
        align_corners: the centers of the corner pixels stay where they are; otherwise their outer corners do.

    Returns:
        Shape ``(C, *shape)``.

    >>> interpolate(np.float32([[[0, 1]]]), (1, 4), False)
    array([[[0.  , 0.25, 0.75, 1.  ]]], dtype=float32)
    """
    if maps.shape[1:] == tuple(shape):
        return maps
    top, bottom, low = _taps(maps.shape[1], shape[0], align_corners)
    left, right, near = _taps(maps.shape[2], shape[1], align_corners)
    rows = maps[:, top] * (1 - low)[:, None] + maps[:, bottom] * low[:, None]
    return rows[:, :, left] * (1 - near) + rows[:, :, right] * near


def _taps(size: int, target: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both neighbours of each target pixel, and the weight of the second."""
    if align_corners:
        step = F32(size - 1) / F32(target - 1) if target > 1 else F32(0)
        position = step * np.arange(target, dtype=F32)
    else:
        scale = float(F32(size) / F32(target))
        position = np.maximum(scale * (np.arange(target) + 0.5) - 0.5, 0).astype(F32)
    first = np.minimum(position.astype(int), size - 1)
    return first, np.minimum(first + 1, size - 1), position - first.astype(F32)
