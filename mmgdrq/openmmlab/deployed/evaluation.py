"""Stages of a model on the test set of a config: float, quantized, folded, in engines."""

from collections.abc import Mapping
from typing import Any

from mmengine.runner import load_checkpoint
from torch import nn

from ...errors import CheckpointError, ConfigError
from ...layers import is_quantized_model
from ..config_parts import without_weights
from .building import build_model, model_config


def evaluate(runner, model: nn.Module) -> dict[str, float]:
    """Metrics of the config's test set for a model in the place of the runner's."""
    own, runner.model = runner.model, model
    try:
        return dict(runner.test_loop.run())
    finally:
        runner.model = own


def build_float_model(cfg: Mapping[str, Any], where: str) -> nn.Module:
    """The float model that a config quantizes, with weights as they are when it is built.

    Args:
        cfg: the whole config; its ``model`` is made by ``mmgdrq.Quantized`` or quantized by the hook.
        where: option or key that errors name.

    Raises:
        ConfigError: the config quantizes a part of the model by ``conv_cfg``, so that no float model is in it.
    """
    config = without_weights(model_config(cfg))
    if 'base_type' in config:
        config['type'] = config.pop('base_type')
        config.pop('quant', None)
    model = build_model(config)
    if is_quantized_model(model):
        raise ConfigError(f'{where}: the config quantizes layers by conv_cfg, so it has no float model to compare with')
    return model


def load_float_model(cfg: Mapping[str, Any], checkpoint: str) -> nn.Module:
    """The float model that a config quantizes, with weights of its own.

    Args:
        cfg: see :func:`build_float_model`.
        checkpoint: file or URL of float weights.

    Raises:
        ConfigError: see :func:`build_float_model`.
        CheckpointError: the weights do not fit.
    """
    model = build_float_model(cfg, '--float')
    try:
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f'--float: {checkpoint} does not fit the float model of the config. Expected a checkpoint of it '
            f'before quantization ({" ".join(str(error).split())[:300]})'
        ) from None
    return model
