"""YOLOv3: boxes from anchors, class scores that are multiplied by an objectness."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..activations import exp, sigmoid
from ..boxes import anchors_at
from ..nms import by_score
from ..preprocessing import ImageInfo
from ..results import Detections
from .dense import finish, per_prior

Spec = Mapping[str, Any]


def decode_yolov3(outputs: Sequence[np.ndarray], info: ImageInfo, spec: Spec, parts: Mapping[str, Any]) -> Detections:
    """Decode the maps of all levels.

    Args:
        outputs: of each level, shape ``(anchors * (5 + classes), H, W)``.
        info: sizes of the image.
        spec: ``decoder`` of a pipeline file.
        parts: further graphs; not used.
    """
    found = [_decode_level(level, maps, spec) for level, maps in enumerate(outputs)]
    boxes, present, scores = (np.concatenate(values) for values in zip(*found))
    index = np.flatnonzero(scores > np.float32(spec['score_thr']))
    values = scores.reshape(-1)[index]
    order = by_score(values)[: min(spec['nms_pre'], len(values))]
    rows, labels = np.divmod(index[order], scores.shape[1])
    return finish(boxes[rows], values[order] * present[rows], labels, info, spec)


def _decode_level(level: int, maps: np.ndarray, spec: Spec):
    predictions = per_prior(maps, 5 + spec['outputs'])
    present = sigmoid(predictions[:, 4])
    if spec['conf_thr'] > 0:
        index = np.flatnonzero(present >= np.float32(spec['conf_thr']))
    else:
        index = np.arange(len(predictions))
    predictions = predictions[index]
    priors, stride = spec['priors'], spec['priors']['strides'][level]
    anchors = anchors_at(priors['base'][level], stride, maps.shape[2], index)
    half = np.float32(0.5)
    move = (sigmoid(predictions[:, :2]) - half) * np.float32(stride[0])
    center = (anchors[:, :2] + anchors[:, 2:]) * half + move
    size = (anchors[:, 2:] - anchors[:, :2]) * half * exp(predictions[:, 2:4])
    return np.concatenate([center - size, center + size], 1), present[index], sigmoid(predictions[:, 5:])
