"""The plan of a quantized model in the log."""

from dataclasses import replace

from mmengine.logging import MMLogger
from torch import nn

from .layers import is_quantized
from .policy import Plan, PlanRow, make_plan
from .quant import ActivationSpec, WeightSpec
from .quant.spec import FLOAT_BITS


def log_plan(model: nn.Module, logger: MMLogger) -> None:
    """Log the plan of ``model``, once in each log; of registered layers where they are all that is quantized."""
    if getattr(model, 'gdrq_plan_log', None) != logger.instance_name:
        model.gdrq_plan_log = logger.instance_name
        plan = model.gdrq_plan if hasattr(model, 'gdrq_plan') else registered_plan(model)
        logger.info('mmgdrq: the quantization plan\n%s', plan)


def registered_plan(model: nn.Module) -> Plan:
    """The plan of a model as it is: what its registered layers are quantized to."""
    modules = dict(model.named_modules())
    return Plan(_as_it_is(row, modules[row.name]) for row in make_plan(model))


def _as_it_is(row: PlanRow, layer: nn.Module) -> PlanRow:
    if not is_quantized(layer):
        return replace(row, weight=None, activation=None, reason='not registered' if row.quantized else row.reason)
    weight = getattr(layer.weight_quantizer, 'spec', WeightSpec(bits=FLOAT_BITS))
    activation = getattr(layer.activation_quantizer, 'spec', ActivationSpec(bits=FLOAT_BITS))
    return replace(row, weight=weight, activation=activation, reason='registered')
