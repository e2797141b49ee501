"""What a teacher and its student are compared by, for detectors, segmentors and classifiers of OpenMMLab.

- classifiers: logits;
- segmentors: logits of each pixel;
- detectors: the features of the neck, normalized, and the outputs of the heads: classes by KL divergence, boxes where
  the teacher is confident. A two-stage detector's RoI head gets the student's proposals in both.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...training.distillation import Distillation, Distiller, Tap
from ...training.distillation.losses import (
    binary_label_sum,
    confidence_of,
    confident_values,
    normalized_features,
    soft_label_sum,
    soft_labels,
)

DENSE_HEADS = ('AnchorHead', 'AnchorFreeHead', 'YOLOXHead')
"""Classes of mmdet, and so their subclasses, whose outputs are lists over levels: class scores, boxes, and scores of
boxes."""

CLASSIFIER_TASK_WEIGHT = 0.1
"""Of a classifier's own loss: the teacher's logits say all that a label says, and more."""


def distiller_of(student: nn.Module, teacher: nn.Module, settings: Distillation) -> Distiller:
    """A distiller whose losses are added to those that the student returns while it trains.

    Args:
        student: a detector, segmentor or classifier of OpenMMLab, outside of wrappers.
        teacher: its float form.
        settings: of the config.

    Raises:
        ConfigError: no part of the model is known to be comparable.
    """
    taps, is_classifier = taps_of(student, settings)
    proposals = _Proposals(student)
    distiller = Distiller(student, teacher, settings, taps, partial(_run, proposals=proposals))
    task = settings.task_weight
    if task is None:
        task = CLASSIFIER_TASK_WEIGHT if is_classifier else 1.0
    distiller._handles += [*proposals.handles, student.register_forward_hook(_adding(distiller, task))]
    return distiller


def _adding(distiller: Distiller, task: float):
    def add(module: nn.Module, args: tuple, output: Any) -> Any:
        if module is not distiller.student or not distiller.losses or not isinstance(output, Mapping):
            return None
        own = {key: _scaled(value, task) if 'loss' in key else value for key, value in output.items()}
        return {**own, **{f'loss_distill_{name}': loss for name, loss in distiller.losses.items()}}

    return add


def _scaled(value: Any, factor: float) -> Any:
    return [_scaled(item, factor) for item in value] if isinstance(value, (list, tuple)) else value * factor


def taps_of(model: nn.Module, settings: Distillation) -> tuple[list[Tap], bool]:
    """What is compared of a model, and whether it is a classifier.

    Raises:
        ConfigError: nothing is.
    """
    kl = partial(soft_labels, temperature=settings.temperature)
    modules = dict(model.named_modules())
    taps = []
    if settings.features and 'neck' in modules and ('bbox_head' in modules or 'rpn_head' in modules):
        taps.append(Tap('features', 'neck', _features, settings.features))
    for name in ('bbox_head', 'rpn_head'):
        if name in modules and _is_dense_head(modules[name]):
            taps.append(Tap(name.removesuffix('_head'), name, partial(_dense_outputs, modules[name])))
    for name in _roi_heads(model):
        taps.append(Tap('roi', name, partial(_roi_outputs, settings.temperature)))
    if 'decode_head.conv_seg' in modules:
        taps.append(Tap('pixels', 'decode_head.conv_seg', kl))
    is_classifier = not taps and 'head' in modules
    if is_classifier:
        taps.append(Tap('logits', 'head', partial(_logits, kl)))
    if not taps:
        raise ConfigError(
            f'distill: {type(model).__name__} has neither a neck with a head of mmdet nor a decode_head with conv_seg '
            'nor a head of a classifier, so it is not known what to compare. In a training loop of your own use '
            'mmgdrq.training.distillation.Distiller with taps'
        )
    return taps, is_classifier


def _is_dense_head(head: nn.Module) -> bool:
    return any(cls.__name__ in DENSE_HEADS for cls in type(head).__mro__)


def _roi_heads(model: nn.Module) -> list[str]:
    heads = getattr(getattr(model, 'roi_head', None), 'bbox_head', None)
    if isinstance(heads, nn.ModuleList):
        return [f'roi_head.bbox_head.{number}' for number in range(len(heads))]
    return [] if heads is None else ['roi_head.bbox_head']


class _Proposals:
    """The RoIs that the student's extractors get in a pass; the teacher's get the same."""

    def __init__(self, student: nn.Module) -> None:
        self.heads = _roi_heads(student)
        names = [name.replace('bbox_head', 'bbox_roi_extractor') for name in self.heads]
        self.rois: list[Tensor] = []
        self.handles = [self._watch(student, student.get_submodule(name)) for name in names]
        if self.heads:
            self.handles.append(student.register_forward_pre_hook(lambda module, args: self.rois.clear()))

    def _watch(self, student: nn.Module, extractor: nn.Module):
        def keep(module: nn.Module, args: tuple) -> None:
            if module is extractor and student.training and torch.is_grad_enabled():
                self.rois.append(args[1].detach())

        return extractor.register_forward_pre_hook(keep)


def _run(teacher: nn.Module, args: tuple, kwargs: dict, proposals: _Proposals) -> None:
    inputs = kwargs['inputs'] if 'inputs' in kwargs else args[0]
    if not hasattr(teacher, 'rpn_head') and not hasattr(teacher, 'bbox_head'):
        teacher(inputs, mode='tensor')
        return
    features = teacher.extract_feat(inputs)
    for head in (getattr(teacher, name, None) for name in ('bbox_head', 'rpn_head')):
        if head is not None and _is_dense_head(head):
            head(features)
    roi_head: Any = getattr(teacher, 'roi_head', None)
    for name, rois in zip(proposals.heads, proposals.rois):
        extractor = teacher.get_submodule(name.replace('bbox_head', 'bbox_roi_extractor'))
        pooled = extractor(features[: extractor.num_inputs], rois)
        teacher.get_submodule(name)(roi_head.shared_head(pooled) if roi_head.with_shared_head else pooled)


def _features(ours: Any, theirs: Any) -> Tensor:
    return torch.stack([normalized_features(a, b) for a, b in zip(ours, theirs)]).mean()


def _logits(kl, ours: Any, theirs: Any) -> Tensor:
    if not isinstance(ours, Tensor):
        raise ConfigError(f'distill: the head gives {type(ours).__name__}, expected one tensor of logits')
    return kl(ours, theirs)


def _dense_outputs(head: nn.Module, ours: Any, theirs: Any) -> dict[str, Tensor]:
    """Classes, boxes and, where the head has them, scores of boxes, over all levels."""
    classes, sigmoid = head.cls_out_channels, getattr(head, 'use_sigmoid_cls', True)
    confidence = [confidence_of(level, classes, sigmoid) for level in theirs[0]]
    count = torch.stack([level.sum() for level in confidence]).sum().clamp(min=1.0)

    def over_levels(loss, output: int) -> Tensor:
        return torch.stack([loss(a, b) for a, b in zip(ours[output], theirs[output])]).sum() / count

    by_class = binary_label_sum if sigmoid else partial(_softmax_of_places, classes)
    losses = dict(cls=over_levels(by_class, 0), box=confident_values(ours[1], theirs[1], confidence))
    if len(ours) > 2:
        losses['score'] = over_levels(binary_label_sum, 2)
    return losses


def _softmax_of_places(classes: int, ours: Tensor, theirs: Tensor) -> Tensor:
    ours, theirs = (x.unflatten(1, (-1, classes)).transpose(1, 2) for x in (ours, theirs))
    return soft_label_sum(ours, theirs)


def _roi_outputs(temperature: float, ours: Any, theirs: Any) -> dict[str, Tensor]:
    (scores, boxes), (their_scores, their_boxes) = ours[:2], theirs[:2]
    confidence = their_scores.detach().float().softmax(1)[:, :-1]
    if their_boxes.shape[1] == 4:  # one box for all classes
        confidence = confidence.amax(1, keepdim=True)
    return dict(
        cls=soft_labels(scores, their_scores, temperature),
        box=confident_values([boxes], [their_boxes], [confidence]),
    )
