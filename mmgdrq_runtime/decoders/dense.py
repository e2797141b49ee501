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
    scores, labels, index = best_scores(maps[0], spec)
    width = maps[0].shape[2]
    boxes = decode_boxes(level, predictions_of(maps[1], spec['coder']['size'], index), width, index, info, spec)
    if spec['factors']:
        scores = scores * sigmoid(maps[2].transpose(1, 2, 0).reshape(-1)[index])
    return boxes, scores, labels


def per_prior(maps: np.ndarray, size: int) -> np.ndarray:
    """Turn maps of shape ``(priors * size, H, W)`` into one row for each prior, location by location."""
    return maps.transpose(1, 2, 0).reshape(-1, size)


def predictions_of(maps: np.ndarray, size: int, index: np.ndarray) -> np.ndarray:
    """Rows ``index`` of what :func:`per_prior` gives."""
    priors = len(maps) // size
    place, number = np.divmod(index, priors)
    return maps.reshape(priors, size, -1)[number, :, place]


def best_scores(maps: np.ndarray, spec: Spec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the highest scores above the threshold, over all priors and classes.

    Args:
        maps: logits, shape ``(priors * classes, H, W)``.
        spec: has ``outputs``, ``activation``, ``score_thr`` and ``nms_pre``.

    Returns:
        Scores, classes and numbers of the priors, from the highest score to the lowest.
    """
    if spec['activation'] == 'softmax':
        scores = softmax(per_prior(maps, spec['outputs']))[:, :-1]
        columns, scores, index = scores.shape[1], scores.reshape(-1), np.arange(scores.size)
    else:
        columns, (index, logits) = spec['outputs'], likely_logits(maps, spec['outputs'], spec['score_thr'])
        scores = sigmoid(logits)
    above = scores > np.float32(spec['score_thr'])
    index, scores = index[above], scores[above]
    # -1, where a config has no limit, drops the lowest: so does mmdet
    order = by_score(scores)[: min(spec['nms_pre'], len(scores))]
    return scores[order], index[order] % columns, index[order] // columns


def likely_logits(maps: np.ndarray, classes: int, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Find logits whose sigmoid may be above a threshold: most are far below, and maps are large.

    Returns:
        Their numbers, counted location by location, then prior by prior, then class by class; and they.
    """
    if not 0 < threshold < 1:
        logits = per_prior(maps, classes).reshape(-1)
        return np.arange(logits.size), logits
    found = np.flatnonzero(maps > logit(threshold) - MARGIN)
    channel, place = np.divmod(found, maps.shape[1] * maps.shape[2])
    index = place * len(maps) + channel
    order = np.argsort(index)
    return index[order], maps.reshape(-1)[found[order]]


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
