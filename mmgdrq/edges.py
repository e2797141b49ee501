"""The layers at the edges of a model: those that read the image, those that predict, and frozen ones."""

import re

from torch import nn

Layers = dict[str, nn.Module]
"""Qualified name -> layer, in module order."""

IMAGE_CHANNELS = 4
"""An input with more channels is no image."""

_PREDICTION = re.compile(
    r'(^|_)(cls|reg|obj|seg|logits|logit|centerness|iou|kernel|offset|wh|heatmap|coord)(_preds?|_convs?|s)?$'
)
_TOWER = re.compile(r'(^|\.)(cls|reg|stacked|shared|mask|kernel)_(convs|fcs)$')


def is_prediction(name: str) -> bool:
    """Whether a layer of an OpenMMLab head makes predictions, judged by its qualified name.

    >>> is_prediction('roi_head.bbox_head.fc_cls'), is_prediction('bbox_head.cls_convs.0.conv')
    (True, False)
    >>> is_prediction('rpn_head.rpn_reg'), is_prediction('bbox_head.multi_level_conv_obj.2')
    (True, True)
    """
    parts = [part for part in name.split('.') if not part.isdigit()]
    if not any('head' in part for part in parts[:-1]):
        return False
    if parts[-1] == 'conv' or _TOWER.search('.'.join(parts)):
        return False
    return bool(_PREDICTION.search(parts[-1]))


def image_layers(layers: Layers) -> list[str]:
    """The convolutions that read the image; the first layer of a model that reads none."""
    if not layers:
        return []
    first = next(iter(layers.values()))
    if not isinstance(first, nn.Conv2d) or first.in_channels > IMAGE_CHANNELS:
        return list(layers)[:1]
    channels = first.in_channels
    return [name for name, layer in layers.items() if getattr(layer, 'in_channels', None) == channels]


def prediction_layers(layers: Layers) -> list[str]:
    """The last layers of every task; at least one of each head."""
    found = [name for name in layers if is_prediction(name)]
    heads = {name.split('.')[0] for name in layers if 'head' in name.split('.')[0]}
    if not heads:
        return found or list(layers)[-1:]
    for head in heads:
        own = [name for name in layers if name.split('.')[0] == head]
        if not any(name in found for name in own):
            found.append(own[-1])
    return found


def frozen_layers(layers: Layers) -> list[str]:
    """The layers whose weights are not trained, in a model that trains others."""
    fixed = [name for name, layer in layers.items() if not _trained(layer)]
    return fixed if len(fixed) < len(layers) else []


def _trained(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters(recurse=False) if p.dim() >= 2)
