"""The model of a whole config, as mmengine's Runner builds it."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def model_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What a runner builds: the config's ``model``, with a ``data_preprocessor`` that stands beside it.

    Args:
        cfg: the whole config; it is not changed.
    """
    config = dict(cfg['model'])
    if cfg.get('data_preprocessor') is not None:
        config.setdefault('data_preprocessor', cfg['data_preprocessor'])
    return config


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """Build a model on the CPU, in evaluation mode.

    Args:
        config: result of :func:`model_config`, or what was made of it.
    """
    from mmengine.registry import MODELS

    return MODELS.build(dict(config)).eval()
