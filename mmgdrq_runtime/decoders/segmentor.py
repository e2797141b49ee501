"""Segmentors: the logits of a small map, resized to the image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..activations import sigmoid
from ..interpolate import interpolate
from ..preprocessing import ImageInfo
from ..results import Segmentation

Spec = Mapping[str, Any]


def decode_segmentor(
    outputs: Sequence[np.ndarray], info: ImageInfo, spec: Spec, parts: Mapping[str, Any]
) -> Segmentation:
    """Turn logits into the class of each pixel.

    Args:
        outputs: one map, shape ``(classes, H, W)``.
        info: sizes of the image; the map is resized to the tensor, cut to the image and resized to its own size.
        spec: ``decoder`` of a pipeline file.
        parts: further graphs; not used.
    """
    logits = interpolate(outputs[0], info.tensor_shape, spec['align_corners'])
    height, width = info.input_shape
    logits = interpolate(logits[:, :height, :width], info.shape, spec['align_corners'])
    if len(logits) == 1:
        return Segmentation((sigmoid(logits[0]) > np.float32(spec['threshold'])).astype(np.int64))
    return Segmentation(logits.argmax(0))


def slide(run, tensor: np.ndarray, spec: Spec) -> np.ndarray:
    """Average the logits of overlapping windows.

    Args:
        run: tensors of shape ``(1, 3, h, w)`` to their logits.
        tensor: shape ``(3, H, W)``.
        spec: ``window`` of a decoder, with ``size`` and ``stride``, height first; and ``align_corners``.

    Returns:
        Shape ``(classes, H, W)``.
    """
    height, width = tensor.shape[1:]
    summed: Any = None
    count = np.zeros((height, width), np.float32)
    for top, bottom in _windows(height, spec['window']['size'][0], spec['window']['stride'][0]):
        for left, right in _windows(width, spec['window']['size'][1], spec['window']['stride'][1]):
            window = tensor[None, :, top:bottom, left:right]
            logits = interpolate(run(window)[0][0], window.shape[2:], spec['align_corners'])
            if summed is None:
                summed = np.zeros((len(logits), height, width), np.float32)
            summed[:, top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
    return summed / count


def _windows(size: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Begin and end of each window; the last ones are moved back inside."""
    number = max(size - window + stride - 1, 0) // stride + 1
    ends = [min(i * stride + window, size) for i in range(number)]
    return [(max(end - window, 0), end) for end in ends]
