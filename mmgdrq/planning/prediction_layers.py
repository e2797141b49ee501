"""Find the layers that predict, by their names; :mod:`.known_heads` finds those of known heads."""

import re
import types
from collections.abc import Iterable, Mapping
from typing import Any

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


def prediction_layers(names: Iterable[str], known: Mapping[str, Any] = types.MappingProxyType({})) -> list[str]:
    """The last layers of every task; at least one of each head, and one that is not of an auxiliary head.

    Args:
        names: qualified names of the layers to judge, in order.
        known: what is known already to be a prediction layer; it counts, and is not among the result.
    """
    names = list(names)
    found = [name for name in names if is_prediction(name)]
    found += _last_of_each(_BRANCH, names)
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.split('.')[0], []).append(name)
    for part, own in parts.items():
        has_one = any(name.split('.')[0] == part for name in [*found, *known])
        if _OUTPUTS.search(part) and not _INTERNAL.search(part) and not has_one:
            found += _last_of_each(_TASK_LIST, own) or own[-1:]
    main = [name for name in names if not name.startswith('aux')]
    has_main = any(not name.startswith('aux') for name in [*found, *known])
    return found if has_main else found + main[-1:]


def _last_of_each(group: re.Pattern, names: Iterable[str]) -> list[str]:
    """The last name of every group, named by what the pattern matches."""
    matches = [(group.match(name), name) for name in names]
    return list({match[0]: name for match, name in matches if match}.values())
