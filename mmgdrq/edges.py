"""The layers at the edges of a model: those that read the image, those that predict, and frozen ones."""

import re
from collections.abc import Iterable

from torch import nn

Layers = dict[str, nn.Module]
"""Qualified name -> layer, in module order."""

IMAGE_CHANNELS = 4
"""An input with more channels is no image."""

_PREDICTION = re.compile(
    r'(^|_)(cls|reg|obj|seg|logits|logit|centerness|iou|kernel|offset|wh|heatmap|coord|coeff|loc|shape|score|pred|out|'
    r'refine|controller|classifier|params?|(cls_|dist_)?head|head_dist|segm_conv|mask_feature|fc_mask|se_layer|'
    r'classes_proj|patch_proj|score_lowres)(_preds?|s)?$'
)
_HEAD = re.compile(r'(^|_)heads?$')
_SEQUENCE = re.compile(r'(^|[._])head\.\d+(\.\d+)*$')
"""A layer of a head that is a plain sequence, of which only the last one may predict."""
_OUTPUTS = re.compile(r'head|(^|_)classifier$|^aux')
"""The parts of a model that each have a prediction layer of their own."""
_INTERNAL = re.compile(r'(^|_)(conv_offset|dcn_offset|sampling_offsets|pre_logits|conv_head)$')
_BRANCH = re.compile(
    r'.*head.*?\.((heatmap|wh|offset)_head|(cls|class|mask|bbox)_embed|reg_branch|(aux_)?(cls|reg)_branches\.\d+|'
    r'fc_reg\.layers|(tl|br)_(heat|off|emb|guiding_shift|centripetal_shift)\.\d+|(cls_prob|reg_offset)_module|'
    r'conv_mask_list(_[xy])?\.\d+|grid_head\.deconv2|protonet|glbctx_head|mask_head\.projection|'
    r'mask_decoder\.(query|pix)_mlp|rec_with_attnbias\.proj|'
    r'(classification|regression)_head\.module_list\.\d+)(?=\.|$)'
)
"""A branch of layers within a head, of which the last one predicts; of DETR-like heads one a decoder layer."""
_TASK_LIST = re.compile(r'.*head.*\.(cls|reg)_convs\.\d+(?=\.)')
"""SSD predicts with the last layer of every entry of these lists; other heads have towers of that name."""
_TOWER = re.compile(r'(^|\.)(cls|reg|stacked|shared|mask|kernel)_(convs|fcs)$')


def is_prediction(name: str) -> bool:
    """Whether a layer of an OpenMMLab head makes predictions, judged by its qualified name.

    >>> is_prediction('roi_head.bbox_head.fc_cls'), is_prediction('bbox_head.cls_convs.0.conv')
    (True, False)
    >>> is_prediction('rpn_head.rpn_reg'), is_prediction('bbox_head.multi_level_conv_obj.2')
    (True, True)
    """
    parts = [part for part in name.split('.') if not part.isdigit()]
    if not any(_HEAD.search(part) for part in parts):
        return False
    if parts[-1] == 'linear' or parts[-2:] == ['conv_pred', 'conv']:  # of a module that wraps the layer
        parts = parts[:-1]
    if _BRANCH.match(name) or _SEQUENCE.search(name):
        return False
    if _INTERNAL.search(parts[-1]) or _TOWER.search('.'.join(parts)):
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
    """The last layers of every task; at least one of each head, and one that is not of an auxiliary head."""
    found = [name for name in layers if is_prediction(name)]
    found += _last_of_each(_BRANCH, layers)
    parts: dict[str, list[str]] = {}
    for name in layers:
        parts.setdefault(name.split('.')[0], []).append(name)
    for part, own in parts.items():
        if _OUTPUTS.search(part) and not _INTERNAL.search(part) and not set(own) & set(found):
            found += _last_of_each(_TASK_LIST, own) or own[-1:]
    main = [name for name in layers if not name.startswith('aux')]
    return found if set(found) & set(main) else found + main[-1:]


def _last_of_each(group: re.Pattern, names: Iterable[str]) -> list[str]:
    """The last name of every group, named by what the pattern matches."""
    matches = [(group.match(name), name) for name in names]
    return list({match[0]: name for match, name in matches if match}.values())


def frozen_layers(layers: Layers) -> list[str]:
    """The layers whose weights are not trained, in a model that trains others.

    A whole network, from the image on, beside one with the same layers follows it, as the teacher of mmdet's
    semi-supervised detectors does, which is also the one that is evaluated: its layers count as frozen only where
    those of the other are. Layers are the same by name, class and shapes.
    """
    trained = {name for name, layer in layers.items() if _trained(layer)}
    networks: dict[str, dict[str, tuple]] = {}
    for name, layer in layers.items():
        network, _, rest = name.partition('.')
        networks.setdefault(network, {})[rest] = type(layer), [p.shape for p in layer.parameters()]
    leaders = {name.partition('.')[0] for name in trained}
    followers = {name.partition('.')[0] for name in image_layers(layers)} - leaders
    for leader in leaders:
        for follower in followers:
            if networks[follower] == networks[leader]:
                rests = [rest for rest in networks[leader] if f'{leader}.{rest}' in trained]
                trained |= {f'{follower}.{rest}' for rest in rests}
    return [name for name in layers if name not in trained] if trained else []


def _trained(layer: nn.Module) -> bool:
    weights = list(layer.parameters(recurse=False))
    if hasattr(layer, 'parametrizations'):  # of torch, such as spectral_norm: they hold the weight
        weights += layer.parametrizations.parameters()
    return any(weight.requires_grad for weight in weights if weight.dim() >= 2)
