"""The plan of a quantized model in the log."""

from mmengine.logging import MMLogger
from torch import nn

from ...planning.policy import plan_as_built
from ...quantized_model.state import states_in


def log_plan(model: nn.Module, logger: MMLogger) -> None:
    """Log the plan of ``model``, once in each log; of registered layers where they are all that is quantized."""
    state = next(states_in(model))
    if state.log != logger.instance_name:
        state.log = logger.instance_name
        logger.info('mmgdrq: the quantization plan\n%s', state.plan or plan_as_built(model))
