"""mmgdrq: low-bit quantization-aware training for OpenMMLab models, by config alone."""

from . import versions as versions  # first: it refuses a torch that is too old

# isort: split
from . import openmmlab
from .config.apply import plan, quantize
from .config.quant_config import QuantConfig
from .deploy import fold
from .layers import Conv2d, Linear
from .openmmlab.builder import build_quantized
from .openmmlab.deployed_model import DeployedModel, load_deployed
from .openmmlab.hooks import GDRQHook, ScaleClipHook
from .openmmlab.ssd_head import build_ssd_head
from .planning.plan import Plan
from .quantized_model.execution import set_execution
from .quantized_model.stages import freeze, get_stage, set_stage
from .training.scale_clip import ScaleClip

__version__ = '0.1.0'
__all__ = [
    'Conv2d',
    'DeployedModel',
    'GDRQHook',
    'Linear',
    'Plan',
    'QuantConfig',
    'ScaleClip',
    'ScaleClipHook',
    '__version__',
    'build_quantized',
    'build_ssd_head',
    'fold',
    'freeze',
    'get_stage',
    'load_deployed',
    'openmmlab',
    'plan',
    'quantize',
    'set_execution',
    'set_stage',
]
