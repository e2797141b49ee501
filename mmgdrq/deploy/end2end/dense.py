"""Heads that predict one box for each prior, as ONNX operators: what :mod:`mmgdrq_runtime.decoders.dense` does."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .operators import Operators

Spec = Mapping[str, Any]


def add_dense(add: Operators, outputs: Sequence[str], image: str, spec: Spec) -> None:
    """Decode the maps of all levels into ``boxes`` (N, 4), ``scores`` (N) and ``labels`` (N).

    Args:
        add: the graph.
        outputs: maps as the decoder of the runtime takes them, for one image.
        image: the resized image, shape ``(1, H, W, 3)``: boxes are clipped to it, and stay in its pixels.
        spec: ``decoder`` of a pipeline file.
    """
    levels = len(spec['priors']['strides'])
    groups = [outputs[i : i + levels] for i in range(0, len(outputs), levels)]
    shape = _shape_of(add, image)
    found = [_add_level(add, level, maps, shape, spec) for level, maps in enumerate(zip(*groups))]
    boxes, scores, labels = (add.join(list(values), 0) for values in zip(*found))
    if spec['min_box_size'] >= 0:
        boxes, scores, labels = _larger(add, boxes, scores, labels, spec['min_box_size'])
    add_suppression(add, boxes, scores, labels, spec['nms'], spec['max_per_image'])


def _shape_of(add: Operators, image: str) -> str:
    """Width, height, width, height, as floats."""
    size = add.cast(add('Slice', add('Shape', image), [1], [3]), 'FLOAT')
    return add('Gather', size, [1, 0, 1, 0])


def _add_level(add: Operators, level: int, maps: Sequence[str], shape: str, spec: Spec) -> tuple[str, str, str]:
    logits = add_per_prior(add, maps[0], spec['outputs'])
    if spec['activation'] == 'softmax':
        scores, classes = add.columns(add('Softmax', logits, axis=1), 0, -1), spec['outputs'] - 1
    else:
        scores, classes = add('Sigmoid', logits), spec['outputs']
    scores, index = _best(add, add.reshape(scores, -1), spec)
    prior, label = add('Div', index, classes), add('Mod', index, classes)
    predictions = add('Gather', add_per_prior(add, maps[1], spec['coder']['size']), prior)
    boxes = add_boxes(add, level, predictions, add.size(maps[0], 3), prior, shape, spec)
    if spec['factors']:
        factors = add.reshape(add('Transpose', maps[2], perm=[0, 2, 3, 1]), -1)
        scores = add('Mul', scores, add('Sigmoid', add('Gather', factors, prior)))
    return boxes, scores, label


def add_per_prior(add: Operators, maps: str, size: int) -> str:
    """Turn maps of shape ``(1, priors * size, H, W)`` into one row for each prior."""
    return add.reshape(add('Transpose', maps, perm=[0, 2, 3, 1]), -1, size)


def _best(add: Operators, scores: str, spec: Spec) -> tuple[str, str]:
    """Scores above the threshold and their numbers; the highest ones, from high to low."""
    above = add('Greater', scores, float(spec['score_thr']))
    index = add.reshape(add('NonZero', above), -1)
    scores = add('Gather', scores, index)
    count = add('Shape', scores)
    # without a limit, -1, the lowest is lost: so it is in mmdet
    limit = add('Min', count, [spec['nms_pre']]) if spec['nms_pre'] >= 0 else add('Max', add('Sub', count, [1]), [0])
    scores, order = add.several('TopK', 2, scores, limit)
    return scores, add('Gather', index, order)


def add_boxes(add: Operators, level: int, predictions: str, width: str, prior: str, shape: str, spec: Spec) -> str:
    """Decode the boxes of some priors of a level."""
    priors, coder = spec['priors'], spec['coder']
    stride = [float(value) for value in priors['strides'][level]]
    if priors['type'] == 'points':
        place, scaled = prior, [value * priors['offset'] for value in stride]
    else:
        base = priors['base'][level]
        place, number = add('Div', prior, [len(base)]), add('Mod', prior, [len(base)])
        scaled = [0.0, 0.0]
    across, down = add('Mod', place, width), add('Div', place, width)
    position = add.join([add('Unsqueeze', value, [1]) for value in (across, down)], 1)
    points = add('Add', add('Mul', add.cast(position, 'FLOAT'), stride), scaled)
    if priors['type'] == 'points':
        boxes = _add_distances(add, points, predictions)
    else:
        places = add('Add', add('Gather', base, number), add.join([points, points], 1))
        if coder['type'] == 'deltas':
            boxes = _add_deltas(add, places, predictions, coder)
        else:
            center = add('Mul', add('Add', add.columns(places, 0, 2), add.columns(places, 2, 4)), 0.5)
            boxes = _add_distances(add, center, _add_expected(add, predictions, coder['size'] // 4, stride[0]))
    return add('Min', add('Max', boxes, 0.0), shape) if coder['clip'] else boxes


def _add_deltas(add: Operators, places: str, deltas: str, coder: Spec) -> str:
    deltas = add('Add', add('Mul', deltas, list(map(float, coder['stds']))), list(map(float, coder['means'])))
    low, high = add.columns(places, 0, 2), add.columns(places, 2, 4)
    size, limit = add('Sub', high, low), float(coder['max_ratio'])
    move, scale = add('Mul', size, add.columns(deltas, 0, 2)), add('Min', add.columns(deltas, 2, 4), limit)
    if coder['center_clamp'] is None:
        scale = add('Max', scale, -limit)
    else:
        clamp = float(coder['center_clamp'])
        move = add('Max', add('Min', move, clamp), -clamp)
    center = add('Add', add('Mul', add('Add', low, high), 0.5), move)
    half = add('Mul', add('Mul', size, add('Exp', scale)), 0.5)
    return add.join([add('Sub', center, half), add('Add', center, half)], 1)


def _add_distances(add: Operators, points: str, distances: str) -> str:
    low, high = add('Sub', points, add.columns(distances, 0, 2)), add('Add', points, add.columns(distances, 2, 4))
    return add.join([low, high], 1)


def _add_expected(add: Operators, logits: str, bins: int, stride: float) -> str:
    probability = add('Softmax', add.reshape(logits, -1, 4, bins), axis=2)
    mean = add('MatMul', probability, [[float(i)] for i in range(bins)])
    return add('Mul', add.reshape(mean, -1, 4), stride)


def _larger(add: Operators, boxes: str, scores: str, labels: str, size: float) -> list[str]:
    extent = add('Sub', add.columns(boxes, 2, 4), add.columns(boxes, 0, 2))
    large = add('Greater', add('ReduceMin', extent, axes=[1], keepdims=0), float(size))
    index = add.reshape(add('NonZero', large), -1)
    return [add('Gather', values, index) for values in (boxes, scores, labels)]


def add_suppression(add: Operators, boxes: str, scores: str, labels: str, nms: Spec, limit: int) -> None:
    """Keep boxes that overlap no better one of the same class, as ``boxes``, ``scores`` and ``labels``.

    Classes are moved apart as mmcv does it, so that one call of NonMaxSuppression has its rules.
    """
    shifted = boxes
    if not nms['class_agnostic']:
        largest = add('ReduceMax', add.join([add.reshape(boxes, -1), add.constant([0.0])], 0), keepdims=1)
        offset = add('Mul', add.cast(labels, 'FLOAT'), add('Add', largest, 1.0))
        shifted = add('Add', boxes, add('Unsqueeze', offset, [1]))
    most = add('Shape', scores) if limit < 0 else [limit]
    overlap = np.float32(nms['iou_threshold'])
    if add.suppresses_equal:
        overlap = np.nextafter(overlap, np.float32(1))
    kept = add(
        'NonMaxSuppression',
        add('Unsqueeze', shifted, [0]),
        add('Unsqueeze', scores, [0, 1]),
        most,
        [overlap],
    )
    index = add.reshape(add.columns(kept, 2, 3), -1)
    for name, values in (('boxes', boxes), ('scores', scores), ('labels', labels)):
        add('Gather', values, index, output=name)
