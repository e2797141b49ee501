"""The model of a whole config, as mmengine's Runner builds it and GDRQHook quantizes it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from torch import nn

from ...config.apply import apply_config, finish
from ...config.quant_config import QuantConfig
from ...errors import CheckpointError
from ...layers.walk import is_quantized_model
from ...quantized_model.state import is_root
from ..config_parts import class_name


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


def quantize_as_trained(model: nn.Module, cfg: Mapping[str, Any], where: Path) -> None:
    """Do to a model, in place, what the hook of its config did before the training.

    Args:
        model: as the config builds it; layers that are quantized already stay as they are.
        cfg: the whole config.
        where: file of the config, named in errors.

    Raises:
        CheckpointError: nothing in the config quantizes the model.
    """
    hook = _gdrq_hook(cfg)
    if hook is None and not is_quantized_model(model):
        raise CheckpointError(
            f'{where}: it has neither GDRQHook nor mmgdrq.Quantized nor quantized layers, so it builds a float model. '
            'Use the config that the model was trained with'
        )
    if hook is None:
        return
    asked = {key: value for key, value in hook.items() if key not in ('type', 'priority')}
    config = replace(QuantConfig.from_config(asked, 'GDRQHook'), stages=None, execution=None)
    if is_root(model):
        finish(model, config)
    else:
        apply_config(model, config)


def _gdrq_hook(cfg: Mapping[str, Any]) -> Optional[Mapping[str, Any]]:
    hooks = [hook for hook in cfg.get('custom_hooks') or [] if class_name(hook.get('type')) == 'GDRQHook']
    return hooks[0] if hooks else None
