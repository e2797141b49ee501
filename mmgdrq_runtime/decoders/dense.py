"""Heads that predict one box for each prior: RetinaNet, SSD, ATSS, FCOS, RTMDet, GFL and their relatives."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..activations import logit, sigmoid, softmax
from ..boxes import (
    anchors_at,
    centers,
    decode_deltas,
    decode_distances,
    expected_distances,
    points_at,
    to_image,
)
from ..nms import batched_nms, by_score
from ..preprocessing import ImageInfo
from ..results import Detections

Spec = Mapping[str, Any]
MARGIN = 1e-3
"""By which a logit may lie below that of the threshold and still be looked at: sigmoids differ in the last bits."""


def decode_dense(outputs: Sequence[np.ndarray], info: ImageInfo, spec: Spec, parts: Mapping[str, Any]) -> Detections:
    """Decode the maps of all levels.

    Args:
        outputs: class scores of each level, shape ``(priors * classes, H, W)``, then box predictions of each level,
            then, with ``factors``, what the scores are multiplied by.
        info: sizes of the image.
        spec: ``decoder`` of a pipeline file.
        parts: further graphs; not used.
    """
    levels = len(spec['priors']['strides'])
    found = []
    for level, maps in enumerate(zip(*[outputs[i : i + levels] for i in range(0, len(outputs), levels)])):
        found.append(decode_level(level, maps, info, spec))
    boxes, scores, labels = (np.concatenate(values) for values in zip(*found))
    return finish(boxes, scores, labels, info, spec)


def decode_level(level: int, maps: Sequence[np.ndarray], info: ImageInfo, spec: Spec):
    """Decode one level: boxes in pixels of the network, scores with their factor, labels."""
    logits = per_prior(maps[0], spec['outputs'])
    scores, labels, index = best_scores(logits, spec)
    width = maps[0].shape[2]
    predictions = per_prior(maps[1], spec['coder']['size'])[index]
    boxes = decode_boxes(level, predictions, width, index, info, spec)
    if spec['factors']:
        scores = scores * sigmoid(maps[2].transpose(1, 2, 0).reshape(-1)[index])
    return boxes, scores, labels


def per_prior(maps: np.ndarray, size: int) -> np.ndarray:
    """Turn maps of shape ``(priors * size, H, W)`` into one row for each prior, location by location."""
    return maps.transpose(1, 2, 0).reshape(-1, size)


def best_scores(logits: np.ndarray, spec: Spec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the highest scores above the threshold, over all priors and classes.

    Returns:
        Scores, classes and numbers of the priors, from the highest score to the lowest.
    """
    threshold, limit = spec['score_thr'], spec['nms_pre']
    if spec['activation'] == 'softmax':
        scores = softmax(logits)[:, :-1]
        index = np.flatnonzero(scores > np.float32(threshold))
        columns, scores = scores.shape[1], scores.reshape(-1)[index]
    else:
        # most candidates are far below the threshold: their sigmoid need not be computed
        likely = logits > logit(threshold) - MARGIN if 0 < threshold < 1 else logits == logits
        index = np.flatnonzero(likely)
        scores = sigmoid(logits.reshape(-1)[index])
        above = scores > np.float32(threshold)
        columns, index, scores = logits.shape[1], index[above], scores[above]
    # -1, where a config has no limit, drops the lowest: so does mmdet
    order = by_score(scores)[: min(limit, len(scores))]
    return scores[order], index[order] % columns, index[order] // columns


def decode_boxes(level: int, predictions: np.ndarray, width: int, index: np.ndarray, info: ImageInfo, spec: Spec):
    """Decode the boxes of some priors of a level.

    Args:
        level: number of the level.
        predictions: of these priors, one row each.
        width: locations in a row of the level.
        index: numbers of the priors.
        info: sizes of the image.
        spec: has ``priors`` and ``coder``.
    """
    priors, coder = spec['priors'], spec['coder']
    stride = priors['strides'][level]
    if priors['type'] == 'points':
        places = points_at(stride, priors['offset'], width, index)
    else:
        places = anchors_at(priors['base'][level], stride, width, index)
    if coder['type'] == 'deltas':
        return decode_deltas(places, predictions, coder, info.input_shape)
    if coder['type'] == 'integral':
        predictions = expected_distances(predictions, coder['size'] // 4, stride[0])
        places = centers(places)
    return decode_distances(places, predictions, coder, info.input_shape)


def finish(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, info: ImageInfo, spec: Spec) -> Detections:
    """Rescale boxes to the image, drop small ones, suppress overlapping ones, and limit their number."""
    boxes = to_image(boxes, info.scale_factor)
    large = larger_than(boxes, spec['min_box_size'])
    boxes, scores, labels = boxes[large], scores[large], labels[large]
    kept = batched_nms(boxes, scores, labels, spec['nms'])[: spec['max_per_image']]
    return Detections(boxes[kept], scores[kept], labels[kept].astype(np.int64))


def larger_than(boxes: np.ndarray, size: float) -> np.ndarray:
    """Say which boxes are wider and higher than ``size``; a negative one keeps all."""
    if size < 0:
        return np.ones(len(boxes), bool)
    return (boxes[:, 2] - boxes[:, 0] > np.float32(size)) & (boxes[:, 3] - boxes[:, 1] > np.float32(size))
