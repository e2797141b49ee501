"""The stages of GDRQ: what the quantizers of a model do at present.

``float`` -> ``reshape`` (Scale-Clip, no rounding) -> ``quantize_weight`` -> ``quantize``. The stage is a buffer
of the model, so a checkpoint knows the stage it was saved in.
"""

import torch
from torch import nn

from ..errors import ConfigError
from ..layers import CLIP, FLOAT, QUANTIZE, ActivationQuantizer, WeightQuantizer

STAGES = ('float', 'reshape', 'quantize_weight', 'quantize')
BUFFER = 'gdrq_stage'

_MODES = {
    'float': (FLOAT, FLOAT),
    'reshape': (FLOAT, CLIP),
    'quantize_weight': (QUANTIZE, CLIP),
    'quantize': (QUANTIZE, QUANTIZE),
}


def init_stage(model: nn.Module, stage: str = 'quantize', follow: bool = False) -> None:
    """Give a converted model its stage buffer.

    Args:
        model: root of the converted model.
        stage: the stage it starts in.
        follow: take over the stage of every checkpoint that is loaded. Without it the model stays in the
            stage that its config asks for.
    """
    model.register_buffer(BUFFER, torch.tensor(STAGES.index(stage)))
    model.gdrq_follow = follow
    model.register_load_state_dict_post_hook(_after_load)
    switch_stage(model, stage)


def set_stage(model: nn.Module, stage: str) -> None:
    """Switch all quantizers of ``model`` to a stage.

    Raises:
        ConfigError: the stage is unknown, or the model is not quantized.
    """
    check_stage(stage)
    _check_quantized(model, 'set_stage')
    model.gdrq_led = True
    switch_stage(model, stage)


def check_stage(stage: str) -> None:
    """Raise where ``stage`` is none of ``STAGES``."""
    if stage not in STAGES:
        raise ConfigError(f'stage {stage!r} is unknown. Expected one of {", ".join(STAGES)}')


def _check_quantized(model: nn.Module, what: str) -> None:
    if not hasattr(model, BUFFER):
        raise ConfigError(f'{what}: the model is not quantized. Call mmgdrq.quantize(model, ...) first')


def need_leader(model: nn.Module) -> None:
    """Refuse to train ``model`` until something leads it through its stages: GDRQHook, or :func:`set_stage`."""
    model.gdrq_led = False
    model.register_forward_pre_hook(_refuse_unled)


def switch_stage(model: nn.Module, stage: str) -> None:
    """:func:`set_stage` without its checks, and without counting as one that leads the model."""
    getattr(model, BUFFER).fill_(STAGES.index(stage))
    model.gdrq_stage_name = stage
    weight_mode, activation_mode = _MODES[stage]
    for module in model.modules():
        if isinstance(module, WeightQuantizer):
            module.mode = weight_mode
        elif isinstance(module, ActivationQuantizer):
            module.mode = activation_mode


def get_stage(model: nn.Module) -> str:
    """The present stage of a converted model.

    Raises:
        ConfigError: the model is not quantized.
    """
    _check_quantized(model, 'get_stage')
    return model.gdrq_stage_name


def freeze(model: nn.Module, frozen: bool = True) -> None:
    """Let activation ranges, learned ranges and BN statistics stay as they are while the weights train on.

    Args:
        model: a quantized model that has its ranges.
        frozen: False lets them move again, those of BN after the next ``model.train()``.

    Raises:
        ConfigError: the model is not quantized.
    """
    _check_quantized(model, 'freeze')
    model.gdrq_frozen = frozen


def _refuse_unled(model: nn.Module, args) -> None:
    if model.training and not model.gdrq_led:
        raise ConfigError(
            f"model.quant.stages: nothing leads the model through them, so it would stay in '{get_stage(model)}'. "
            "Add dict(type='mmgdrq.GDRQHook') to custom_hooks; in a training loop of your own call "
            'mmgdrq.set_stage(model, ...) when a stage begins'
        )


def _after_load(model: nn.Module, incompatible_keys) -> None:
    saved = STAGES[int(getattr(model, BUFFER))]
    switch_stage(model, saved if model.gdrq_follow else get_stage(model))
