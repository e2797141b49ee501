"""Layers that the zoos use several times stay one layer: the same object, one row in the plan, one range.

EfficientDet, which is no part of the mmdet package but one of its projects, shares the convolutions of its head over
levels with BN of their own, as the head of NAS-FPN's RetinaNet does.
"""

import copy

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmgdrq
from mmgdrq.layers import is_quantized

ANCHORS = dict(type='AnchorGenerator', ratios=[1.0], scales=[8], strides=[8, 16])
POINTS = dict(type='MlvlPointGenerator', offset=0, strides=[8, 16])
BN = dict(type='BN')
HEADS = {
    'RTMDet': (
        dict(
            type='RTMDetSepBNHead',
            num_classes=3,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            with_objectness=False,
            norm_cfg=BN,
            act_cfg=dict(type='ReLU'),
            anchor_generator=POINTS,
            bbox_coder=dict(type='DistancePointBBoxCoder'),
        ),
        'cls_convs.{}.0.conv',
    ),
    'NAS-FPN': (
        dict(
            type='RetinaSepBNHead',
            num_classes=3,
            num_ins=2,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            norm_cfg=BN,
            anchor_generator=ANCHORS,
        ),
        'cls_convs.{}.0.conv',
    ),
    'Deformable DETR': (
        dict(
            type='DeformableDETRHead',
            num_classes=3,
            embed_dims=8,
            num_pred_layer=2,
            share_pred_layer=True,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        ),
        'cls_branches.{}',
    ),
}


def model_with(name: str) -> tuple[nn.ModuleDict, list[str]]:
    """A model with that head, and the names of one of its shared layers."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    config, layer = HEADS[name]
    head = MODELS.build(copy.deepcopy(config))
    net = nn.ModuleDict(dict(backbone=nn.Conv2d(3, 8, 3, padding=1), bbox_head=head))
    if name == 'Deformable DETR':
        net.forward = lambda x: [branch(net['backbone'](x).flatten(2).mT) for branch in head.cls_branches]
    else:
        net.forward = lambda x: head([net['backbone'](x), net['backbone'](x * 5)])
    return net, [f'bbox_head.{layer.format(i)}' for i in range(2)]


def shared(net: nn.Module) -> set[frozenset[str]]:
    """Names of the modules and parameters that have several."""
    found: dict[int, set[str]] = {}
    for walk in (net.named_modules, net.named_parameters):
        for name, item in walk(remove_duplicate=False):
            if 'quantizer' not in name:
                found.setdefault(id(item), set()).add(name)
    return {frozenset(names) for names in found.values() if len(names) > 1}


@pytest.mark.parametrize('name', HEADS)
def test_ties_are_kept(name):
    net, names = model_with(name)
    before = shared(net)
    assert any(set(names) <= group for group in before), 'the float model shares it'
    float_state = {key: value.clone() for key, value in net.state_dict().items()}
    mmgdrq.quantize(net)
    assert shared(net) == before
    assert sum(row.name in names for row in mmgdrq.state(net).plan) == 1
    net.load_state_dict(float_state, strict=False)
    assert shared(net) == before
    first, second = (net.get_submodule(layer) for layer in names)
    assert first is second
    assert is_quantized(first)
    copied = copy.deepcopy(net)
    assert shared(copied) == before, 'as EMA does'


@pytest.mark.parametrize('name', ['RTMDet', 'NAS-FPN'])
def test_levels_pool_their_statistics(name):
    """The range of a shared layer is that of all its inputs, and counts as one update per iteration."""
    net, names = model_with(name)
    mmgdrq.quantize(net, weight=dict(bits=2), activation=dict(bits=4, range='mean', k=2.0, signed=True))
    layer = net.get_submodule(names[0])
    inputs = []
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    net.train()(torch.randn(2, 3, 8, 8))
    assert len(inputs) == 2, 'one call a level'
    expected = 2.0 * torch.cat([x.flatten() for x in inputs]).abs().mean()
    torch.testing.assert_close(torch.as_tensor(layer.activation_quantizer.threshold), expected)
