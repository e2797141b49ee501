"""``mmgdrq.Quantized``: build any registered model and quantize it, from one flat config."""

from collections.abc import Mapping
from typing import Any, Callable, Optional, Union

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from ..config.apply import apply_config
from ..config.quant_config import KEYS, QuantConfig
from ..errors import ConfigError, unknown_key
from ..layers import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Linear, WeightQuantizer
from ..layers.walk import all_modules
from ..quantized_model.stages import need_leader
from ..quantized_model.state import state_of
from ..registry import MODELS
from .config_parts import class_name
from .running.plan_log import log_plan

QUANT_KEYS = [key for key in KEYS if key not in ('scale_clip', 'distill')]
"""Keys of ``quant``: all but those of the hook, which alone sees the training."""

for layer in (Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, Linear):
    MODELS.register_module(module=layer)


@MODELS.register_module(name='Quantized')
def build_quantized(
    base_type: Union[str, Callable[..., nn.Module], None] = None,
    quant: Optional[Mapping[str, Any]] = None,
    **model,
) -> nn.Module:
    """Build the model ``base_type`` and quantize it.

    The result is an instance of ``base_type`` itself, so everything that reads the config or the model
    (inferencers, FlexibleRunner, test-time augmentation) works as with the float model.

    Scale-Clip and ``stages`` need ``dict(type='mmgdrq.GDRQHook')`` in ``custom_hooks``, without keys: a model with
    ``stages`` that nothing leads through them refuses to train.

    Args:
        base_type: registered name of the float model, such as ``'FasterRCNN'``, or its class, as configs in the pure
            Python style have it; it must be given.
        quant: ``weight``, ``activation``, ``rules``, ``stages``, ``execution`` and ``deploy`` as for
            :func:`mmgdrq.quantize` and :class:`mmgdrq.GDRQHook`.
        **model: the other keys of the float model's config.

    Raises:
        ConfigError: an unknown key, a bad value, or a key of ``quant`` beside it.
    """
    if quant is not None and not isinstance(quant, Mapping):
        raise ConfigError(f'model.quant: expected a dict such as dict(weight=dict(bits=2)), got {quant!r}')
    quant = quant or {}
    for key in quant:
        if key not in QUANT_KEYS:
            raise unknown_key('model.quant', key, QUANT_KEYS)
    if not isinstance(base_type, str) and not callable(base_type):
        raise ConfigError(
            "model.base_type: expected the registered name of the float model, such as 'FasterRCNN', or its class, "
            f'got {base_type!r}'
        )
    config = QuantConfig.from_config(quant, 'model.quant')
    built = _build_float(base_type, model)
    apply_config(built, config)
    state_of(built).schedule = config.schedule
    if config.schedule.moves:
        need_leader(built)
    _announce_training(built)
    return built


def _build_float(base_type: Union[str, Callable[..., nn.Module]], config: Mapping[str, Any]) -> nn.Module:
    try:
        return MMENGINE_MODELS.build({'type': base_type, **config})
    except TypeError as error:
        for key in QUANT_KEYS:
            if key in config and f"unexpected keyword argument '{key}'" in str(error):
                raise ConfigError(
                    f'model.{key}: belongs into model.quant: quant=dict({key}=...). Beside it are the keys of '
                    f'{class_name(base_type)}, which has no {key}'
                ) from error
        raise


def _announce_training(model: nn.Module) -> None:
    """Let ``model`` log its plan when it begins to train, and warn where nothing is there to clip its weights."""
    state_of(model).clipped = not any(isinstance(module, WeightQuantizer) for module in all_modules(model))
    model.register_forward_pre_hook(_announce)


def _announce(model: nn.Module, args) -> None:
    if not model.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    logger = MMLogger.get_current_instance()
    log_plan(model, logger)
    state = state_of(model)
    if not state.clipped:
        state.clipped = True
        logger.warning(
            "mmgdrq: the model is trained without Scale-Clip. Add dict(type='mmgdrq.GDRQHook') to custom_hooks (with "
            'scale_clip=False if this is meant); in a training loop of your own call '
            'mmgdrq.ScaleClip(model).attach(optimizer)'
        )
