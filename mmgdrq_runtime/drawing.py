"""Draw results into images with Pillow."""

import colorsys
from collections.abc import Sequence
from typing import Optional

import numpy as np

from .errors import InputError
from .images import Image, load_image
from .preprocessing import installed
from .results import Classification, Detections, Result, Segmentation

OPACITY = 0.5
"""Of masks and label maps."""


def draw(
    image: Image,
    result: Result,
    classes: Sequence[str] = (),
    palette: Optional[Sequence[Sequence[int]]] = None,
    score_thr: float = 0.3,
):
    """Draw a result into a copy of its image.

    Args:
        image: that the model was given.
        result: what it returned.
        classes: ``model.classes``; without them numbers are shown.
        palette: ``model.palette``; without it colours are chosen.
        score_thr: detections of lower scores are left out.

    Returns:
        A ``PIL.Image.Image``, RGB.

    Raises:
        InputError: Pillow is not installed, or the image cannot be read.
    """
    pillow = installed('PIL.Image')
    if not pillow:
        raise InputError('draw: Pillow is not installed. Run `pip install pillow`')
    pixels = np.ascontiguousarray(load_image(image)[..., ::-1])
    if isinstance(result, Segmentation):
        return pillow.fromarray(_blend_labels(pixels, result.label_map, palette))
    if isinstance(result, Classification):
        picture = pillow.fromarray(pixels)
        score = result.class_scores[result.label]
        _write(picture, (2, 2), f'{_name(result.label, classes)} {score:.2f}', color_of(result.label, palette))
        return picture
    return _draw_detections(pillow, pixels, result.take(result.scores >= score_thr), classes, palette)


def color_of(label: int, palette: Optional[Sequence[Sequence[int]]] = None) -> tuple[int, int, int]:
    """Return the colour of a label, red, green and blue.

    >>> color_of(1, [[0, 0, 0], [9, 8, 7]])
    (9, 8, 7)
    """
    if palette is not None and label < len(palette):
        red, green, blue = palette[label]
    else:
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(label * 0.618 % 1, 0.8, 0.9))
    return red, green, blue


def _draw_detections(pillow, pixels: np.ndarray, found: Detections, classes, palette):
    if found.masks is not None:
        for mask, label in zip(found.masks, found.labels):
            pixels[mask] = pixels[mask] * (1 - OPACITY) + np.array(color_of(label, palette)) * OPACITY
    picture = pillow.fromarray(pixels)
    pen = _pen(picture)
    for box, score, label in reversed(list(zip(found.boxes.tolist(), found.scores, found.labels))):
        color = color_of(label, palette)
        pen.rectangle([min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])], None, color)
        _write(picture, (box[0] + 1, box[1] + 1), f'{_name(label, classes)} {score:.2f}', color)
    return picture


def _blend_labels(pixels: np.ndarray, labels: np.ndarray, palette) -> np.ndarray:
    colors = np.array([color_of(label, palette) for label in range(int(labels.max()) + 1)])
    return (pixels * (1 - OPACITY) + colors[labels] * OPACITY).astype(np.uint8)


def _pen(picture):
    from PIL import ImageDraw

    return ImageDraw.Draw(picture)


def _write(picture, place: tuple[float, float], text: str, color: tuple[int, int, int]) -> None:
    pen = _pen(picture)
    pen.rectangle(pen.textbbox(place, text), color)
    pen.text(place, text, (0, 0, 0) if sum(color) > 380 else (255, 255, 255))


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else str(label)
