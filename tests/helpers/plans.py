"""Small models, and the plans that they get."""

from torch import nn
from torch.nn.utils import parametrizations

import mmgdrq


def conv(inputs, outputs, size=3):
    return nn.Conv2d(inputs, outputs, size)


def tree(**children):
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def conv_module(inputs, outputs):
    return tree(conv=conv(inputs, outputs), bn=nn.BatchNorm2d(outputs))


def classifier():
    return tree(
        backbone=tree(conv1=conv(3, 8), bn1=nn.BatchNorm2d(8), layer1=nn.Sequential(conv(8, 8), conv(8, 8))),
        head=tree(fc=nn.Linear(8, 10)),
    )


def retina():
    return tree(
        backbone=tree(conv1=conv(3, 8), layer1=nn.Sequential(conv(8, 8))),
        neck=tree(lateral_convs=nn.ModuleList([conv_module(8, 8)]), fpn_convs=nn.ModuleList([conv_module(8, 8)])),
        bbox_head=tree(
            cls_convs=nn.ModuleList([conv_module(8, 8), conv_module(8, 8)]),
            reg_convs=nn.ModuleList([conv_module(8, 8)]),
            retina_cls=conv(8, 9),
            retina_reg=conv(8, 4),
        ),
    )


def faster_rcnn():
    return tree(
        backbone=tree(conv1=conv(3, 8), layer1=nn.Sequential(conv(8, 8))),
        rpn_head=tree(rpn_conv=conv(8, 8), rpn_cls=conv(8, 1, 1), rpn_reg=conv(8, 4, 1)),
        roi_head=tree(
            bbox_head=tree(shared_fcs=nn.ModuleList([nn.Linear(8, 8)]), fc_cls=nn.Linear(8, 3), fc_reg=nn.Linear(8, 8)),
            mask_head=tree(convs=nn.ModuleList([conv_module(8, 8)]), conv_logits=conv(8, 2, 1)),
        ),
    )


def segmentor():
    return tree(
        backbone=tree(stem=nn.Sequential(conv(3, 8), conv(8, 8)), layer1=nn.Sequential(conv(8, 8))),
        decode_head=tree(bottleneck=conv_module(8, 8), conv_seg=conv(8, 5, 1)),
        auxiliary_head=tree(convs=nn.Sequential(conv_module(8, 8)), conv_seg=conv(8, 5, 1)),
    )


def rows(model, **quant):
    return {row.name: row for row in mmgdrq.plan(model, **quant)}


def at_eight(model):
    return {name for name, row in rows(model, weight=dict(bits=2)).items() if row.weight and row.weight.bits == 8}


class Unusual(nn.Conv2d):
    """A convolution with a forward pass of its own, which convolves twice."""

    def forward(self, input):
        return super().forward(input) + super().forward(input.abs())


class Renamed(nn.Conv2d):
    """A convolution with another name and the forward pass of torch."""


def odd_model():
    return tree(
        backbone=tree(conv1=conv(3, 8), odd=Unusual(8, 8, 3), renamed=Renamed(8, 8, 3), pair=nn.Bilinear(8, 8, 2)),
        encoder=tree(
            attention=nn.MultiheadAttention(8, 2, add_bias_kv=True),
            orthogonal=parametrizations.orthogonal(nn.Linear(8, 8)),
            embed=nn.Embedding(9, 8),
            norm=nn.LayerNorm(8),
            middle=nn.Linear(8, 8),
        ),
        head=tree(fc=nn.Linear(8, 2)),
    )
