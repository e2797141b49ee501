"""Heads of the zoos that need a repair before they can be used at all."""

from typing import Any

from torch import nn

from ..registry import MODELS


@MODELS.register_module(name='SSDHead')
def build_ssd_head(**head: Any) -> nn.Module:
    """mmdet's ``SSDHead``, mended so that it predicts.

    mmdet 3.3.0 asks every dense head for its ``loss_cls`` when it predicts. SSD's has none, as its loss is a function,
    so that validation and test of mmdet's own SSD end with an ``AttributeError`` (open-mmlab/mmdetection, issue 11780).

    Args:
        **head: the config of mmdet's ``SSDHead``.
    """
    from mmdet.models.dense_heads import SSDHead

    built = SSDHead(**head)
    built.loss_cls = None
    return built
