"""Take the mean error of quantization out of each channel, by the bias of its layer or the running mean of its BN."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import is_quantized
from ..layers.walk import all_modules
from ..quantized_model.stages import set_stage

Means = dict[nn.Module, list[Tensor]]


@torch.no_grad()
def correct_bias(model: nn.Module, run: Callable[[], Any]) -> int:
    """Correct every BN and every quantized layer with a bias, in the order in which they are called.

    Each sees what the corrected ones before it give. Modules that are called several times in a pass (heads that are
    shared by levels) stay as they are.

    Args:
        model: a quantized model with its ranges, in evaluation mode and in stage ``'quantize'``.
        run: runs it on a batch, with the same images every time.

    Returns:
        The number of corrected modules.
    """
    expected: Means = {}
    set_stage(model, 'float')
    try:
        with _looking(model, lambda module, mean: expected.setdefault(module, []).append(mean)):
            run()
    finally:
        set_stage(model, 'quantize')
    once = {module: means[0] for module, means in expected.items() if len(means) == 1}

    def correct(module: nn.Module, mean: Tensor) -> Tensor:
        """The error of the mean, which goes into the module."""
        error = mean - once[module] if module in once else torch.zeros_like(mean)
        target: Any = module.running_mean if isinstance(module, _BatchNorm) else module.bias.data
        target.add_(error if isinstance(module, _BatchNorm) else -error)
        return error

    with _looking(model, correct):
        run()
    return len(once)


@contextmanager
def _looking(model: nn.Module, see: Callable[[nn.Module, Tensor], Any]) -> Iterator[None]:
    """While active, ``see`` gets the mean per channel of what each BN reads and each layer with a bias gives."""

    def before_norm(norm: nn.Module, args: tuple) -> None:
        see(norm, _channel_means(args[0], 1))

    def behind_layer(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        axis = 1 if layer.folds_as == 'conv' else -1
        error = see(layer, _channel_means(output, axis))
        if error is None:
            return output
        return output - error.reshape([-1 if i == axis % output.dim() else 1 for i in range(output.dim())])

    hooks = []
    for module in all_modules(model):
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(before_norm))
        elif is_quantized(module) and module.folds_as is not None and module._parameters.get('bias') is not None:
            hooks.append(module.register_forward_hook(behind_layer))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _channel_means(x: Tensor, axis: int) -> Tensor:
    return x.detach().float().movedim(axis, 0).flatten(1).mean(1)
