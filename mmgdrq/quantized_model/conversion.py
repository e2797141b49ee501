"""Turn a float model into a quantized one, in place."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from torch import nn

from ..errors import ConfigError
from ..layers import call_projections, let_parents_read, quantize_layer, replacements, set_lean_relu
from ..layers.walk import is_quantized_model
from ..planning.plan import Plan, make_plan
from .iteration import manage
from .loading import check_at_load
from .stages import BUFFER, check_stage, init_stage


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
        stage: stage to start in, see :mod:`mmgdrq.quantized_model.stages`.
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
    check_at_load(model)


def check_not_empty(plan: Plan) -> None:
    """Raise where a plan would quantize nothing."""
    if not plan.pending:
        reasons = '; '.join(sorted({row.reason for row in plan})) or 'it has no weight layers'
        raise ConfigError(f'model: nothing would be quantized ({reasons})')
