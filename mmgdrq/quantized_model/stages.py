"""The stages of GDRQ: what the quantizers of a model do at present.

``float`` -> ``reshape`` (Scale-Clip, no rounding) -> ``quantize_weight`` -> ``quantize``. The stage is a buffer
of the model, so a checkpoint knows the stage it was saved in.
"""

from torch import nn

from ..errors import ConfigError
from ..layers.quantizers.state import STAGES
from .state import read_buffers, state_of, write_frozen, write_stage


def set_stage(model: nn.Module, stage: str) -> None:
    """Switch all quantizers of ``model`` to a stage.

    Raises:
        ConfigError: the stage is unknown, or the model is not quantized.
    """
    check_stage(stage)
    state_of(model, 'set_stage').led = True
    switch_stage(model, stage)


def check_stage(stage: str) -> None:
    """Raise where ``stage`` is none of ``STAGES``."""
    if stage not in STAGES:
        raise ConfigError(f'stage {stage!r} is unknown. Expected one of {", ".join(STAGES)}')


def need_leader(model: nn.Module) -> None:
    """Refuse to train ``model`` until something leads it through its stages: GDRQHook, or :func:`set_stage`."""
    state_of(model).led = False
    model.register_forward_pre_hook(_refuse_unled)


def switch_stage(model: nn.Module, stage: str) -> None:
    """:func:`set_stage` without its checks, and without counting as one that leads the model."""
    state_of(model).stage = stage
    write_stage(model)


def get_stage(model: nn.Module) -> str:
    """The present stage of a converted model.

    Raises:
        ConfigError: the model is not quantized.
    """
    state = state_of(model, 'get_stage')
    read_buffers(model)
    return state.stage


def freeze(model: nn.Module, frozen: bool = True) -> None:
    """Let activation ranges, learned ranges and BN statistics stay as they are while the weights train on.

    Args:
        model: a quantized model that has its ranges.
        frozen: False lets them move again, those of BN after the next ``model.train()``.

    Raises:
        ConfigError: the model is not quantized.
    """
    state_of(model, 'freeze').frozen = frozen
    write_frozen(model)


def _refuse_unled(model: nn.Module, args) -> None:
    if model.training and not state_of(model).led:
        raise ConfigError(
            f"model.quant.stages: nothing leads the model through them, so it would stay in '{state_of(model).stage}'. "
            "Add dict(type='mmgdrq.GDRQHook') to custom_hooks; in a training loop of your own call "
            'mmgdrq.set_stage(model, ...) when a stage begins'
        )
