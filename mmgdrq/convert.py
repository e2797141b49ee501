"""Turn a float model into a quantized one, in place."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

from torch import nn

from .errors import CheckpointError, ConfigError
from .layers import (
    call_projections,
    is_quantized,
    let_parents_read,
    manage,
    quantize_layer,
    replacements,
    set_lean_relu,
)
from .policy import Plan, make_plan
from .stages import BUFFER, check_stage, init_stage

_QUANTIZER_KEYS = ('.weight_quantizer.', '.activation_quantizer.', '.engine_result.')
_ADDED_LATER = '.engine_result.'
"""Quantizers that a model may get after it was trained without them."""


def quantize(
    model: nn.Module,
    weight: Optional[Mapping[str, Any]] = None,
    activation: Optional[Mapping[str, Any]] = None,
    rules: Sequence[Mapping[str, Any]] = (),
    *,
    stage: str = 'quantize',
    follow_checkpoint: bool = False,
) -> nn.Module:
    """Quantize ``model`` in place and return it.

    Parameters, their names, aliases and hooks stay what they are: optimizers that exist already and float
    checkpoints go on working. ``model.gdrq_plan`` holds the plan.

    Args:
        model: any module; its own forward pass defines one training iteration.
        weight: dict of :class:`~mmgdrq.quant.WeightSpec`.
        activation: dict of :class:`~mmgdrq.quant.ActivationSpec`.
        rules: see :func:`mmgdrq.plan`.
        stage: stage to start in, see :mod:`mmgdrq.stages`.
        follow_checkpoint: whether a loaded checkpoint decides the stage.

    Raises:
        ConfigError: a bad key or value, an unknown stage, a rule that matches nothing, or nothing to quantize. The
            model is as it was then.

    >>> from torch import nn
    >>> model = quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)))
    >>> [row.weight.bits for row in model.gdrq_plan]
    [8, 2, 8]
    """
    check_stage(stage)
    for name, module in model.named_modules():
        if hasattr(module, BUFFER):
            raise ConfigError(f'model: {name or "it"} is quantized already. Quantize the float model once, as a whole')
        if getattr(module, 'efficient_conv_bn_eval_forward', None) is not None:
            raise ConfigError(
                f'model: {name} has efficient_conv_bn_eval turned on, which reads the float weight and would bypass '
                'quantization. Build the model without it'
            )
    plan = make_plan(model, weight, activation, rules)
    if not is_quantized_model(model):  # registered layers may be all there is
        check_not_empty(plan)
    modules = dict(model.named_modules())
    found = replacements(model)
    for row in plan.pending:
        quantize_layer(modules[row.name], found[row.name].cls, row.weight, row.activation, row.name)
    call_projections(model)
    let_parents_read(model)
    set_lean_relu(model)
    prepare(model, plan, stage, follow_checkpoint)
    return model


def prepare(model: nn.Module, plan: Plan, stage: str, follow_checkpoint: bool) -> None:
    """Attach to the root of a model what its quantized layers need: plan, iteration, stage, load check."""
    model.gdrq_plan = plan
    manage(model)
    init_stage(model, stage, follow_checkpoint)
    _before_load(model, _check_state)
    model.register_load_state_dict_post_hook(_allow_float_weights)


def _before_load(model: nn.Module, check: Callable) -> None:
    if hasattr(model, 'register_load_state_dict_pre_hook'):
        model.register_load_state_dict_pre_hook(check)
    else:  # torch before 2.5 has it under this name only
        model._register_load_state_dict_pre_hook(check, with_module=True)


def check_not_empty(plan: Plan) -> None:
    """Raise where a plan would quantize nothing."""
    if not plan.pending:
        reasons = '; '.join(sorted({row.reason for row in plan})) or 'it has no weight layers'
        raise ConfigError(f'model: nothing would be quantized ({reasons})')


def quantization_keys(keys: Iterable[str], prefix: str = '') -> list[str]:
    """Those of the keys of a state dict that belong to quantizers."""
    return [key for key in keys if key.startswith(prefix) and any(part in '.' + key for part in _QUANTIZER_KEYS)]


def _check_state(model, state_dict, prefix, *_) -> None:
    """A state dict has no quantization state at all (float weights), or exactly the model's."""
    found = set(quantization_keys(state_dict, prefix))
    if not found:
        return
    expected = set(quantization_keys(model.state_dict(prefix=prefix)))
    if not any(_ADDED_LATER in key for key in found):
        expected = {key for key in expected if _ADDED_LATER not in key}
    if found == expected:
        return
    missing, extra = sorted(expected - found), sorted(found - expected)
    text = []
    if missing:
        text.append(f'{len(missing)} ranges of the model are missing, such as {missing[0]}')
    if extra:
        text.append(f'{len(extra)} ranges belong to layers that the config does not quantize so, such as {extra[0]}')
    raise CheckpointError(
        f'checkpoint: its quantization state does not fit the model: {"; ".join(text)}. Use the config it '
        'was trained with, or start from its float weights'
    )


def _allow_float_weights(model: nn.Module, incompatible_keys) -> None:
    """Float weights fit a quantized model, with ``strict=True`` too: they have no quantization state to miss."""
    missing = incompatible_keys.missing_keys
    added = set(quantization_keys(missing))  # all of them or none: _check_state has refused the rest
    if added:
        missing[:] = [key for key in missing if key not in added and key.rpartition('.')[2] != BUFFER]


def is_quantized_model(model: nn.Module) -> bool:
    """Whether ``model`` holds any quantized layer."""
    return any(is_quantized(module) for module in model.modules())
