"""Turn a float model into a quantized one, in place, as a plan says."""

import copy

import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm

from ..errors import ConfigError
from ..layers import call_projections, let_parents_read, quantize_layer, replacements, set_lean_relu
from ..layers.quantizers.quantizer import Quantizer
from ..layers.walk import all_modules, is_quantized_model
from ..planning.plan import Plan
from .iteration import manage
from .loading import check_at_load
from .state import QuantizedModelState, attach_state, is_root


def convert(model: nn.Module, plan: Plan, stage: str = 'quantize', follow_checkpoint: bool = False) -> nn.Module:
    """Quantize ``model`` in place as ``plan`` says, and return it.

    Args:
        model: a float model, see :func:`check_convertible`.
        plan: a plan of this model.
        stage: stage to start in, see :mod:`mmgdrq.quantized_model.stages`.
        follow_checkpoint: whether a loaded checkpoint decides the stage.

    Raises:
        ConfigError: nothing would be quantized.
    """
    if not is_quantized_model(model):  # registered layers may be all there is
        _check_not_empty(plan)
    modules = dict(model.named_modules())
    found = replacements(model)
    for row in plan.pending:
        assert row.specs, row
        quantize_layer(modules[row.name], found[row.name].cls, *row.specs, row.name)
    call_projections(model)
    let_parents_read(model)
    set_lean_relu(model)
    attach_state(model, QuantizedModelState(Plan(plan), stage, follow_checkpoint))
    manage(model)
    check_at_load(model)
    if hasattr(model, '_register_deepcopy_hook'):  # a torch.fx.GraphModule, of a torch that has it
        model.__dict__.setdefault('_deepcopy_hooks', []).append(_restore_copy)  # torchvision's never initialize it
    return model


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy of ``model`` in which quantized models are what they were, whatever kind of module they are."""
    _compute_weights(model)
    copied = copy.deepcopy(model)
    for name, module in model.named_modules():
        if is_root(module) and not is_root(copied.get_submodule(name)):
            _restore_copy(copied.get_submodule(name))
    return copied


@torch.no_grad()
def _compute_weights(model: nn.Module) -> None:
    """Compute the weights that forward pre-hooks of torch compute, from what was trained or loaded after the last pass.

    What a training pass has left can moreover not be copied, as it has a gradient.
    """
    for module in all_modules(model):
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                setattr(module, hook._tensor_name, hook.apply_mask(module))
            elif isinstance(hook, SpectralNorm):
                setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))


def _restore_copy(copied: nn.Module) -> None:
    """Give the copy of a ``torch.fx.GraphModule`` its state, which its quantizers still hold, and its hooks."""
    states = (module.state for module in all_modules(copied) if isinstance(module, Quantizer))
    state = next((state for state in states if isinstance(state, QuantizedModelState)), None)
    if state is not None:  # a folded model has none
        attach_state(copied, state)
        manage(copied)


def check_convertible(model: nn.Module) -> None:
    """Raise where ``model`` is quantized already, or would bypass quantization.

    Raises:
        ConfigError: names the module.
    """
    for name, module in model.named_modules():
        if is_root(module):
            raise ConfigError(f'model: {name or "it"} is quantized already. Quantize the float model once, as a whole')
        if getattr(module, 'efficient_conv_bn_eval_forward', None) is not None:
            raise ConfigError(
                f'model: {name} has efficient_conv_bn_eval turned on, which reads the float weight and would bypass '
                'quantization. Build the model without it'
            )


def _check_not_empty(plan: Plan) -> None:
    if not plan.pending:
        reasons = '; '.join(sorted({row.reason for row in plan})) or 'it has no weight layers'
        raise ConfigError(f'model: nothing would be quantized ({reasons})')
