"""YOLOX as ONNX operators: what :mod:`mmgdrq_runtime.decoders.yolox` does."""

from collections.abc import Mapping, Sequence
from typing import Any

from .dense import add_per_prior, add_suppression
from .operators import Operators

Spec = Mapping[str, Any]


def add_yolox(add: Operators, outputs: Sequence[str], image: str, spec: Spec) -> None:
    """Decode the maps of all levels into ``boxes`` (N, 4), ``scores`` (N) and ``labels`` (N).

    Args:
        add: the graph.
        outputs: maps as the decoder of the runtime takes them, for one image.
        image: the resized image; boxes are in its pixels.
        spec: ``decoder`` of a pipeline file.
    """
    strides = spec['priors']['strides']
    levels = len(strides)
    classes, boxes, objectness = (outputs[i * levels : (i + 1) * levels] for i in range(3))
    scores = add('Sigmoid', add.join([add_per_prior(add, maps, spec['outputs']) for maps in classes], 0))
    present = add('Sigmoid', add.join([add.reshape(add_per_prior(add, maps, 1), -1) for maps in objectness], 0))
    labels = add('ArgMax', scores, axis=1, keepdims=0)
    scores = add('Mul', add('ReduceMax', scores, axes=[1], keepdims=0), present)
    found = add('GreaterOrEqual', scores, float(spec['score_thr']))
    index = add.reshape(add('NonZero', found), -1)
    decoded = add.join([_add_boxes(add, maps, stride, spec) for maps, stride in zip(boxes, strides)], 0)
    boxes, scores, labels = (add('Gather', values, index) for values in (decoded, scores, labels))
    add_suppression(add, boxes, scores, labels, spec['nms'], spec['nms']['max_num'])


def _add_boxes(add: Operators, maps: str, stride: Sequence[float], spec: Spec) -> str:
    predictions = add_per_prior(add, maps, 4)
    width, step = add.size(maps, 3), [float(value) for value in stride]
    count = add('Squeeze', add.size(predictions, 0))
    place = add('Range', add.constant(0), count, add.constant(1))
    position = add.join([add('Unsqueeze', add(kind, place, width), [1]) for kind in ('Mod', 'Div')], 1)
    points = add('Mul', add('Add', add.cast(position, 'FLOAT'), float(spec['priors']['offset'])), step)
    center = add('Add', add('Mul', add.columns(predictions, 0, 2), step), points)
    half = add('Mul', add('Mul', add('Exp', add.columns(predictions, 2, 4)), step), 0.5)
    return add.join([add('Sub', center, half), add('Add', center, half)], 1)
