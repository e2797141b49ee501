"""YOLOX: one class for each location, a score that is multiplied by an objectness."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..activations import exp, sigmoid
from ..boxes import divide, points_at
from ..nms import batched_nms
from ..preprocessing import ImageInfo
from ..results import Detections
from .dense import per_prior

Spec = Mapping[str, Any]


def decode_yolox(outputs: Sequence[np.ndarray], info: ImageInfo, spec: Spec, parts: Mapping[str, Any]) -> Detections:
    """Decode the maps of all levels.

    Args:
        outputs: class scores of each level, shape ``(classes, H, W)``, then box predictions of each level, then
            objectness of each level.
        info: sizes of the image.
        spec: ``decoder`` of a pipeline file.
        parts: further graphs; not used.
    """
    strides = spec['priors']['strides']
    levels = len(strides)
    classes, sides, objectness = (outputs[i * levels : (i + 1) * levels] for i in range(3))
    logits = np.concatenate([per_prior(maps, spec['outputs']) for maps in classes])
    present = sigmoid(np.concatenate([maps.reshape(-1) for maps in objectness]))
    labels = sigmoid(logits).argmax(1)  # of the scores, as two logits may have one score
    scores = sigmoid(logits[np.arange(len(labels)), labels]) * present
    found = np.flatnonzero(scores >= np.float32(spec['score_thr']))
    boxes = np.concatenate([_boxes(maps, stride, spec) for maps, stride in zip(sides, strides)])[found]
    boxes, scores, labels = divide(boxes, info.scale_factor), scores[found], labels[found]
    kept = batched_nms(boxes, scores, labels, spec['nms'])
    return Detections(boxes[kept], scores[kept], labels[kept])


def _boxes(maps: np.ndarray, stride: Sequence[float], spec: Spec) -> np.ndarray:
    predictions = per_prior(maps, 4)
    points = points_at(stride, spec['priors']['offset'], maps.shape[2], np.arange(len(predictions)))
    steps = np.asarray(stride, np.float32)
    center = predictions[:, :2] * steps + points
    half = exp(predictions[:, 2:]) * steps / 2
    return np.concatenate([center - half, center + half], 1)
