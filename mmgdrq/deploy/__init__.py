"""From a trained quantized model to a deployable one."""

from mmgdrq_runtime.manifest import is_deployed

from .engines.requantized_output import simulated
from .folding.artifact import load_folded, save_folded
from .folding.fold import fold
from .plugged_engine import plug_engine
from .simulation import simulate
from .verification.folded import check_blocks, compare_blocks

__all__ = [
    'check_blocks',
    'compare_blocks',
    'fold',
    'is_deployed',
    'load_folded',
    'plug_engine',
    'save_folded',
    'simulate',
    'simulated',
]
