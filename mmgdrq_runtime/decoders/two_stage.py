"""Faster, Mask and Cascade R-CNN: proposals, then a head for each region."""

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from ..activations import sigmoid, softmax
from ..boxes import decode_deltas, divide, to_image
from ..masks import paste
from ..nms import batched_nms, by_score
from ..preprocessing import ImageInfo
from ..results import Detections
from ..roi_align import extract_regions
from .dense import decode_boxes, larger_than, per_prior, predictions_of

Spec = Mapping[str, Any]
Parts = Mapping[str, Callable[[np.ndarray], list[np.ndarray]]]


def decode_two_stage(outputs: Sequence[np.ndarray], info: ImageInfo, spec: Spec, parts: Parts) -> Detections:
    """Propose regions and run the heads on them.

    Args:
        outputs: feature maps of each level, then scores and box predictions of the proposals of each level.
        info: sizes of the image.
        spec: ``decoder`` of a pipeline file.
        parts: name of a head -> a function of regions, shape ``(N, C, h, w)``.
    """
    levels = len(spec['rpn']['priors']['strides'])
    features, scores, boxes = (outputs[i * levels : (i + 1) * levels] for i in range(3))
    rois = propose(scores, boxes, info, spec['rpn'])
    if not len(rois):
        return _empty(info, spec)
    rois, logits, predictions = _refine(features, rois, info, spec, parts)
    found = _detect(rois, logits, predictions, info, spec)
    if spec['mask'] is None:
        return found
    if not len(found):
        return _empty(info, spec)
    return _with_masks(features, found, info, spec['mask'], parts)


def propose(scores: Sequence[np.ndarray], boxes: Sequence[np.ndarray], info: ImageInfo, spec: Spec) -> np.ndarray:
    """Decode the region proposals, shape ``(N, 4)`` in pixels of the network, best ones first."""
    found = []
    for level, maps in enumerate(zip(scores, boxes)):
        logits = per_prior(maps[0], spec['outputs'])
        values = sigmoid(logits[:, 0]) if spec['activation'] == 'sigmoid' else softmax(logits)[:, 0]
        index = by_score(values)[: spec['nms_pre']] if 0 < spec['nms_pre'] < len(values) else np.arange(len(values))
        predictions = predictions_of(maps[1], 4, index)
        decoded = decode_boxes(level, predictions, maps[0].shape[2], index, info, spec)
        found.append((decoded, values[index], np.full(len(index), level)))
    regions, likely, ids = (np.concatenate(values) for values in zip(*found))
    large = larger_than(regions, spec['min_box_size'])
    regions, likely, ids = regions[large], likely[large], ids[large]
    return regions[batched_nms(regions, likely, ids, spec['nms'])[: spec['max_per_image']]]


def _refine(features: Sequence[np.ndarray], rois: np.ndarray, info: ImageInfo, spec: Spec, parts: Parts):
    """Run the heads one after the other; each moves the regions, and the logits are averaged."""
    stages = spec['stages']
    summed: Any = 0
    for number, stage in enumerate(stages):
        logits, predictions = parts[stage['part']](extract_regions(features, rois, stage['roi']))
        summed = summed + logits
        if number < len(stages) - 1:
            label = logits[:, :-1].argmax(1)
            chosen = predictions.reshape(len(rois), -1, 4)
            chosen = chosen[:, 0] if stage['class_agnostic'] else chosen[np.arange(len(rois)), label]
            rois = decode_deltas(rois, chosen, stage['coder'], info.input_shape)
    return rois, summed / np.float32(len(stages)), predictions


def _detect(rois: np.ndarray, logits: np.ndarray, predictions: np.ndarray, info: ImageInfo, spec: Spec) -> Detections:
    stage = spec['stages'][-1]
    scores = softmax(logits)[:, :-1]
    index = np.flatnonzero(scores > np.float32(spec['score_thr']))  # over regions and classes
    rows, labels = np.divmod(index, scores.shape[1])
    predictions = predictions.reshape(len(rois), -1, 4)
    chosen = predictions[rows, 0] if stage['class_agnostic'] else predictions[rows, labels]
    boxes = decode_deltas(rois[rows], chosen, stage['coder'], info.input_shape)
    if spec['mask'] is None:  # with masks everything up to them is in pixels of the network
        boxes = to_image(boxes, info.scale_factor)
    values = scores.reshape(-1)[index]
    kept = batched_nms(boxes, values, labels, spec['nms'])
    kept = kept[: spec['max_per_image']] if spec['max_per_image'] > 0 else kept
    return Detections(boxes[kept], values[kept], labels[kept])


def _with_masks(features: Sequence[np.ndarray], found: Detections, info: ImageInfo, spec: Spec, parts: Parts):
    regions = extract_regions(features, found.boxes, spec['roi'])
    summed: Any = sum(sigmoid(parts[part](regions)[0]) for part in spec['parts'])
    probability = summed / np.float32(len(spec['parts']))
    probability = probability[:, 0] if spec['class_agnostic'] else probability[np.arange(len(found)), found.labels]
    boxes = divide(found.boxes, info.scale_factor)
    masks = paste(probability, boxes, info.shape, spec['threshold'])
    return Detections(boxes, found.scores, found.labels, masks)


def _empty(info: ImageInfo, spec: Spec) -> Detections:
    masks = None if spec['mask'] is None else np.zeros((0, *info.shape), bool)
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), masks)
