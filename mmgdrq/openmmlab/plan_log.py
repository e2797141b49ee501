"""The plan of a quantized model in the log."""

from dataclasses import replace

from mmengine.logging import MMLogger
from torch import nn

from ..planning.plan import Plan
from ..planning.policy import make_plan
from ..planning.row import PlanRow
from ..quantized_model.state import states_in


def log_plan(model: nn.Module, logger: MMLogger) -> None:
    """Log the plan of ``model``, once in each log; of registered layers where they are all that is quantized."""
    state = next(states_in(model))
    if state.log != logger.instance_name:
        state.log = logger.instance_name
        logger.info('mmgdrq: the quantization plan\n%s', state.plan or registered_plan(model))


def registered_plan(model: nn.Module) -> Plan:
    """The plan of a model as it is: what its registered layers are quantized to."""
    return Plan(map(_as_it_is, make_plan(model)))


def _as_it_is(row: PlanRow) -> PlanRow:
    if row.built:
        return replace(row, reason='registered')
    return row.in_float('not registered' if row.quantized else row.reason)
