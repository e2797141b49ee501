"""Whether an optimizer can train what Scale-Clip is attached to."""

import warnings
from collections.abc import Iterable, Iterator

from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigError
from ..layers import quantized_layers


def check_quantized(model: nn.Module, what: str) -> None:
    """Raise where ``model`` has no quantized layer.

    Raises:
        ConfigError: names the function ``what`` that needs one.
    """
    if next(quantized_layers(model), None) is None:
        raise ConfigError(f'{what}: the model is not quantized. Call mmgdrq.quantize(model, ...) first')


def held_by(optimizer: Optimizer) -> set[int]:
    """The ``id`` of every parameter that an optimizer trains."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group['params']}


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise where ``optimizer`` is none of torch, or only looks like one.

    Raises:
        ConfigError: it is no optimizer of torch that calls hooks.
    """
    hooks = '_optimizer_step_post_hooks'  # a wrapper such as accelerate's is a subclass that was never initialized
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, hooks):
        raise ConfigError(
            f'ScaleClip.attach: expected an optimizer of torch, got {type(optimizer).__name__}. A wrapper, such as '
            'those of mmengine and accelerate, has it as .optimizer; attach to that one: attach(optimizer.optimizer)'
        )


def warn_left_out(model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Warn of learned ranges that none of ``optimizers`` holds, although one trains the weights of their layers."""
    held = set().union(*map(held_by, optimizers))
    left_out = list(dict.fromkeys(_left_out(model, held)))
    if left_out:
        warnings.warn(
            f'mmgdrq: no optimizer holds the learned ranges of {len(left_out)} layers whose weights are trained, such '
            f"as '{left_out[0]}', so they never move. Make the optimizer after mmgdrq.quantize, or add them with "
            'optimizer.add_param_group',
            stacklevel=2,
        )


def _left_out(model: nn.Module, held: set[int]) -> Iterator[str]:
    for layer in quantized_layers(model):
        if id(layer.stored_weight()) not in held:
            continue
        for quantizer in (layer.weight_quantizer, layer.activation_quantizer):
            for learned in quantizer.parameters():
                if learned.requires_grad and id(learned) not in held:
                    yield quantizer.layer_name
