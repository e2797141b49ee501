"""Whether a plan is one of a model."""

from torch import nn

from ..errors import ConfigError, nearest
from .plan import Plan
from .policy import make_plan
from .row import PlanRow

REMEDY = 'Make it with mmgdrq.plan(model) and edit that one'


def check_fits(plan: Plan, model: nn.Module) -> None:
    """Raise where a plan is not one of ``model``, or asks for what cannot be done to it.

    Raises:
        ConfigError: names the first layer that does not fit.
    """
    if not isinstance(plan, Plan):
        raise ConfigError(f'plan: expected a result of mmgdrq.plan or Plan.load, got {type(plan).__name__}')
    model_rows = {row.name: row for row in make_plan(model)}
    for row in plan:
        if row.name not in model_rows:  # or for the second time
            guess = nearest(row.name, model_rows)
            hint = f". The nearest is '{guess}'" if guess else ''
            raise ConfigError(f"plan: the model has no weight layer '{row.name}'{hint}. {REMEDY}")
        _check_row(row, model_rows.pop(row.name))
    if model_rows:
        raise ConfigError(f"plan: it says nothing about '{next(iter(model_rows))}' of the model. {REMEDY}")


def _check_row(row: PlanRow, own: PlanRow) -> None:
    for key in ('module', 'kind', 'filters', 'parameters', 'built'):
        planned, found = getattr(row, key), getattr(own, key)
        if planned != found:
            raise ConfigError(f"plan: '{row.name}' has {key}={planned!r}, in the model it has {found!r}. {REMEDY}")
    if row.quantized and own.specs is None:
        raise ConfigError(f"plan: '{row.name}' cannot be quantized: {own.reason}. {REMEDY}")
    if row.built and (row.weight, row.activation) != (own.weight, own.activation):
        raise ConfigError(f"plan: '{row.name}' is a quantized layer already, with other specs. {REMEDY}")
    if own.float_input and row.enabled[1]:
        raise ConfigError(f"plan: '{row.name}' cannot have a quantized activation: {own.float_input}. {REMEDY}")
