"""The model inside a distributed wrapper, or inside test-time augmentation."""

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from ..errors import ConfigError
from ..layers.walk import all_modules

SHARDING = (
    'FSDPModule',
    'FullyShardedDataParallel',
    'MMFullyShardedDataParallel',
    'MMDeepSpeedEngineWrapper',
    'ColossalAIModelWrapper',
)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside its wrappers: those of distributed runs, and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def refuse_sharding(model: nn.Module) -> None:
    """Raise where the weights of a layer are split over processes, or its parameters are replaced.

    Raises:
        ConfigError: names the wrapper.
    """
    for module in all_modules(model):
        kinds = [cls.__name__ for cls in type(module).__mro__ if cls.__name__ in SHARDING]
        if kinds:
            raise ConfigError(
                f'{kinds[0]}: it splits the weights over the processes, so the range of a group of filters would be '
                'that of a shard. Train with DistributedDataParallel (the launcher of tools/dist_train.sh)'
            )
