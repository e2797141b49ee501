"""Scale-Clip of the weights: a projection after every real optimizer step."""

from collections.abc import Iterator
from typing import Optional

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..layers import WeightQuantizer, quantized_layers
from ..layers.walk import activation_quantizers
from ..quantized_model.state import states_in
from ..quantized_model.steps import StepWatch
from .older_optimizers import reshape_learned
from .optimizer_check import check_optimizer, check_quantized, held_by, warn_left_out


class ScaleClip:
    """Projects the weights of all quantized layers of a model to ``[-k mean|W_g|, k mean|W_g|]``.

    Args:
        model: a quantized model.

    Attributes:
        enabled: whether the projection happens.

    Raises:
        ConfigError: the model is not quantized.
    """

    def __init__(self, model: nn.Module) -> None:
        check_quantized(model, 'ScaleClip')
        self.model = model
        self.enabled = True
        self._unchecked: list[Optimizer] = []
        for state in states_in(model):  # the builder's model warns without it
            state.clipped = True

    def attach(self, optimizer: Optimizer):
        """Project the weights of ``optimizer`` after every step of it that really happens; steps that a GradScaler
        skips and iterations that only accumulate gradients do not project.

        An optimizer that holds no parameter of the model (but copies of them) projects all weights.

        Returns:
            A handle; ``handle.remove()`` ends it.

        Raises:
            ConfigError: it is no optimizer of torch.
        """
        check_optimizer(optimizer)
        handle = optimizer.register_step_post_hook(lambda *_: self._after(optimizer))
        self._unchecked.append(optimizer)
        self._reshape(optimizer)  # where it has been loaded, and where it will be
        if hasattr(optimizer, 'register_load_state_dict_post_hook'):
            optimizer.register_load_state_dict_post_hook(self._reshape)
        for state in states_in(self.model):
            state.steps = state.steps or StepWatch()
        return handle

    def _reshape(self, optimizer: Optimizer) -> None:
        learned = [quantizer.learned() for quantizer in activation_quantizers(self.model)]
        reshape_learned(optimizer, [parameter for parameter in learned if parameter is not None])

    def __call__(self) -> None:
        """Project now, if enabled."""
        for layer in self._layers():
            layer.scale_clip_()

    def _layers(self) -> Iterator[nn.Module]:
        if self.enabled:
            for layer in quantized_layers(self.model):
                if isinstance(layer.weight_quantizer, WeightQuantizer) and layer.stored_weight().requires_grad:
                    yield layer

    def _after(self, optimizer: Optimizer) -> None:
        for state in states_in(self.model):
            if state.steps is not None:
                state.steps.seen = True
        if self._unchecked:  # all of them are attached by now
            warn_left_out(self.model, self._unchecked)
            self._unchecked = []
        held = held_by(optimizer)
        if held.isdisjoint(map(id, self.model.parameters())):
            return self()
        # a fused optimizer decides on the device whether a GradScaler's step is skipped
        skipped = getattr(optimizer, 'found_inf', None)
        for layer in self._layers():
            if id(layer.stored_weight()) in held:
                _project(layer, skipped)


def _project(layer: nn.Module, skipped: Optional[Tensor]) -> None:
    before = layer.stored_weight().detach().clone() if skipped is not None else None
    layer.scale_clip_()
    if before is not None and skipped is not None:
        weight = layer.stored_weight().detach()
        weight.copy_(torch.where(skipped.to(weight.device) > 0, before, weight))
