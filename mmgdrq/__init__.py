"""mmgdrq: low-bit quantization-aware training for OpenMMLab models, by config alone."""

from . import compat, loading
from .builder import build_quantized
from .convert import quantize
from .deploy import fold, load_deployed
from .heads import build_ssd_head
from .hooks import GDRQHook, ScaleClipHook
from .layers import Conv2d, Linear, set_execution
from .policy import make_plan as plan
from .scale_clip import ScaleClip
from .stages import freeze, get_stage, set_stage
from .version import __version__

__all__ = [
    'Conv2d',
    'GDRQHook',
    'Linear',
    'ScaleClip',
    'ScaleClipHook',
    '__version__',
    'build_quantized',
    'build_ssd_head',
    'compat',
    'fold',
    'freeze',
    'get_stage',
    'load_deployed',
    'loading',
    'plan',
    'quantize',
    'set_execution',
    'set_stage',
]
