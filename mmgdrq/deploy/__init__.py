"""From a trained quantized model to a deployable one."""

from .artifact import is_deployed, load_folded, save_folded
from .engine_result import simulated
from .fold import fold
from .runtime import DeployedModel, load_deployed, plug_engine
from .simulation import simulate
from .verify import check_blocks, compare_blocks

__all__ = [
    'DeployedModel',
    'check_blocks',
    'compare_blocks',
    'fold',
    'is_deployed',
    'load_deployed',
    'load_folded',
    'plug_engine',
    'save_folded',
    'simulate',
    'simulated',
]
