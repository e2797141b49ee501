"""Resize uint8 images bit for bit as OpenCV and Pillow do, in numpy."""

import numpy as np

F32 = np.float32


def resize_linear(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize an image as ``cv2.resize`` with INTER_LINEAR does.

    Args:
        image: shape ``(H, W, C)``, uint8.
        width: of the result, in pixels.
        height: of the result, in pixels.

    Returns:
        Shape ``(height, width, C)``, uint8.

    >>> resize_linear(np.array([[[0], [100]]], np.uint8), 4, 1)[0, :, 0]
    array([  0,  25,  75, 100], dtype=uint8)
    """
    rows, columns = image.shape[:2]
    source = image.astype(np.int32)
    if (rows, columns) == (height, width):
        return image.copy()
    if (rows, columns) == (2 * height, 2 * width):  # OpenCV halves by the mean of 2x2
        four = source[::2, ::2] + source[::2, 1::2] + source[1::2, ::2] + source[1::2, 1::2]
        return ((four + 2) >> 2).astype(np.uint8)
    x, right = _taps(columns, width)
    right[(x < 0) | (x >= columns - 1)] = 0
    x = x.clip(0, columns - 1)
    y, below = _taps(rows, height)  # beyond the first and last row the weights stay
    across = source[:, x] * _fixed(1 - right) + source[:, (x + 1).clip(0, columns - 1)] * _fixed(right)
    across >>= 4
    upper = across[y.clip(0, rows - 1)] * _fixed(1 - below)[..., None] >> 16
    lower = across[(y + 1).clip(0, rows - 1)] * _fixed(below)[..., None] >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _taps(size: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Index of the left neighbour of each target pixel, and the weight of the right one."""
    position = ((np.arange(target) + 0.5) * (1 / (target / size)) - 0.5).astype(F32)
    left = np.floor(position).astype(int)
    return left, position - left.astype(F32)


def _fixed(weight: np.ndarray) -> np.ndarray:
    """Weights in 1/2048, as a column."""
    return np.rint(weight * F32(2048)).astype(np.int32)[:, None]


def resize_pillow(image: np.ndarray, width: int, height: int, interpolation: str) -> np.ndarray:
    """Resize an image as Pillow does.

    Args:
        image: shape ``(H, W, C)``, uint8.
        width: of the result, in pixels.
        height: of the result, in pixels.
        interpolation: one of :data:`KERNELS`.

    Returns:
        Shape ``(height, width, C)``, uint8.
    """
    rows, columns = image.shape[:2]
    rows_first = rows > height and rows - height > 2 * (columns - width)
    for axis in (0, 1) if rows_first else (1, 0):
        target = (height, width)[axis]
        if image.shape[axis] != target:
            image = np.moveaxis(_along_rows(np.moveaxis(image, axis, 0), target, interpolation), 0, axis)
    return np.ascontiguousarray(image)


def _along_rows(source: np.ndarray, target: int, interpolation: str) -> np.ndarray:
    kernel, support = KERNELS[interpolation]
    size = len(source)
    zoom = max(size / target, 1.0)
    result = np.empty((target, *source.shape[1:]), np.uint8)
    for i in range(target):
        center = (i + 0.5) * (size / target)
        low, high = max(int(center - support * zoom + 0.5), 0), min(int(center + support * zoom + 0.5), size)
        weight = kernel((np.arange(low, high) - center + 0.5) / zoom)
        weight = weight / sum(weight.tolist()) * 2**22
        weight = np.trunc(weight + np.where(weight < 0, -0.5, 0.5)).astype(np.int64)
        summed = np.tensordot(weight, source[low:high].astype(np.int64), 1)
        result[i] = ((summed + 2**21) >> 22).clip(0, 255)
    return result


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS = {'bilinear': (_triangle, 1), 'bicubic': (_cubic, 2)}
"""Interpolation -> weight by distance, and the distance from which on it is 0."""
