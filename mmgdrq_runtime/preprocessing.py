"""Prepare an image as the test pipeline and the data preprocessor of a config do."""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Callable

import numpy as np

from .errors import InputError
from .resize import resize_linear, resize_pillow

Spec = Mapping[str, Any]
MAX_PIXELS = 1 << 26
"""Of the input of a network; its tensor then takes 800 MB."""


@dataclass(frozen=True)
class ImageInfo:
    """What decoders have to know about an image.

    Attributes:
        shape: height and width of the image as it was given.
        input_shape: of the image for the network, with what a ``pad`` step adds. Boxes are clipped to it.
        scale_factor: by which its width and its height were resized.
        tensor_shape: of the tensor; larger than ``input_shape`` where the preprocessor pads.
    """

    shape: tuple[int, int]
    input_shape: tuple[int, int]
    scale_factor: tuple[float, float] = (1.0, 1.0)
    tensor_shape: tuple[int, int] = (0, 0)


def prepare(image: np.ndarray, spec: Spec) -> tuple[np.ndarray, ImageInfo]:
    """Turn an image into the input of the network.

    Args:
        image: shape ``(H, W, 3)``, uint8, BGR.
        spec: ``preprocessing`` of a pipeline file.

    Returns:
        The tensor, shape ``(3, H', W')``, float32, and the sizes on the way to it.
    """
    info = ImageInfo(image.shape[:2], image.shape[:2])
    for step in spec['steps']:
        image, info = STEPS[step['type']](image, info, step)
    if spec['reverse_channels']:
        image = image[..., ::-1]
    tensor = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    if spec['mean'] is not None:
        mean, std = (np.asarray(spec[key], np.float32)[:, None, None] for key in ('mean', 'std'))
        tensor = (tensor - mean) / std
    tensor = _pad_tensor(tensor, spec)
    return tensor, replace(info, tensor_shape=tensor.shape[1:])


def _check_area(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise InputError(
            f'image: it would become {height:,} x {width:,} pixels for the network; expected {MAX_PIXELS:,} in all at '
            'most. Cut it into pieces'
        )


def _pad_tensor(tensor: np.ndarray, spec: Spec) -> np.ndarray:
    divisor, (height, width) = spec['pad_divisor'], tensor.shape[1:]
    if spec['pad_size'] is not None:
        least = spec['pad_size']
        target = max(height, least[0]), max(width, least[1])
    else:
        target = tuple(math.ceil(size / divisor) * divisor for size in (height, width))
    _check_area(*target)
    below, right = target[0] - height, target[1] - width
    if not below and not right:
        return tensor
    return np.pad(tensor, ((0, 0), (0, below), (0, right)), constant_values=np.float32(spec['pad_value']))


def _resize(image: np.ndarray, info: ImageInfo, step: Spec) -> tuple[np.ndarray, ImageInfo]:
    (width, height), (rows, columns) = step['scale'], image.shape[:2]
    if step['keep_ratio']:
        scale = min(max(width, height) / max(rows, columns), min(width, height) / min(rows, columns))
        width, height = int(columns * scale + 0.5), int(rows * scale + 0.5)
    return _resized(image, info, step, width, height)


def _resize_edge(image: np.ndarray, info: ImageInfo, step: Spec) -> tuple[np.ndarray, ImageInfo]:
    (rows, columns), edge, size = image.shape[:2], step['edge'], step['size']
    if edge == 'width' or (edge == 'short' and columns < rows) or (edge == 'long' and columns > rows):
        width, height = size, int(size * rows / columns)
    else:
        width, height = int(size * columns / rows), size
    return _resized(image, info, step, width, height)


def _resized(image: np.ndarray, info: ImageInfo, step: Spec, width: int, height: int) -> tuple[np.ndarray, ImageInfo]:
    rows, columns = image.shape[:2]
    width, height = max(width, 1), max(height, 1)
    _check_area(height, width)
    image = resized(image, width, height, step['library'], step['interpolation'])
    return image, replace(info, input_shape=(height, width), scale_factor=(width / columns, height / rows))


def resized(image: np.ndarray, width: int, height: int, library: str, interpolation: str) -> np.ndarray:
    """Resize with OpenCV or Pillow where they are installed, else with numpy: the pixels are the same."""
    image = np.ascontiguousarray(image)
    if library == 'cv2':
        cv2 = installed('cv2')
        return cv2.resize(image, (width, height)) if cv2 else resize_linear(image, width, height)
    pillow = installed('PIL.Image')
    if not pillow:
        return resize_pillow(image, width, height, interpolation)
    return np.array(pillow.fromarray(image).resize((width, height), getattr(pillow, interpolation.upper())))


def installed(name: str):
    """Return a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _center_crop(image: np.ndarray, info: ImageInfo, step: Spec) -> tuple[np.ndarray, ImageInfo]:
    width, height = step['size']
    rows, columns = image.shape[:2]
    top, left = max(0, round((rows - height) / 2)), max(0, round((columns - width) / 2))
    image = image[top : top + height, left : left + width]
    return image, replace(info, input_shape=image.shape[:2])


def _pad(image: np.ndarray, info: ImageInfo, step: Spec) -> tuple[np.ndarray, ImageInfo]:
    rows, columns = image.shape[:2]
    if step['square']:
        rows = columns = max(rows, columns)
    if step['divisor'] is not None:
        rows, columns = (math.ceil(size / step['divisor']) * step['divisor'] for size in (rows, columns))
    elif step['size'] is not None:
        columns, rows = step['size']
    rows, columns = max(rows, image.shape[0]), max(columns, image.shape[1])
    _check_area(rows, columns)
    padded = np.empty((rows, columns, 3), np.uint8)
    padded[:] = np.asarray(step['value'], np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded, replace(info, input_shape=(rows, columns))


def _reverse_channels(image: np.ndarray, info: ImageInfo, step: Spec) -> tuple[np.ndarray, ImageInfo]:
    return image[..., ::-1], info


STEPS: dict[str, Callable[[np.ndarray, ImageInfo, Spec], tuple[np.ndarray, ImageInfo]]] = {
    'resize': _resize,
    'resize_edge': _resize_edge,
    'center_crop': _center_crop,
    'pad': _pad,
    'reverse_channels': _reverse_channels,
}
