"""mmgdrq: low-bit quantization-aware training for OpenMMLab models, by config alone.

Without torch only :mod:`mmgdrq.runtime` is there, without mmengine only what works on plain torch models.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

__version__ = '0.1.0'

_WITH_TORCH = find_spec('torch') is not None
_WITH_MMENGINE = _WITH_TORCH and find_spec('mmengine') is not None

if TYPE_CHECKING or _WITH_TORCH:
    from . import versions as versions  # first: it refuses a torch that is too old

    # isort: split
    from .config.apply import plan, quantize
    from .config.quant_config import QuantConfig
    from .deploy import fold
    from .layers import Conv2d, Linear
    from .planning.known_heads import register_prediction_layers
    from .planning.plan import Plan
    from .post_training import CalibrationReport, calibrate
    from .quantized_model.execution import set_execution
    from .quantized_model.stages import freeze, get_stage, set_stage
    from .quantized_model.state import state_of as state
    from .training.scale_clip import ScaleClip

if TYPE_CHECKING or _WITH_MMENGINE:
    from . import openmmlab
    from .openmmlab.builder import build_quantized
    from .openmmlab.deployed.deployed_model import DeployedModel, load_deployed
    from .openmmlab.hooks import GDRQHook, ScaleClipHook
    from .openmmlab.ssd_head import build_ssd_head

__all__ = [
    'CalibrationReport',
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
    'calibrate',
    'fold',
    'freeze',
    'get_stage',
    'load_deployed',
    'openmmlab',
    'plan',
    'quantize',
    'register_prediction_layers',
    'set_execution',
    'set_stage',
    'state',
]

if not TYPE_CHECKING and not _WITH_MMENGINE:

    def __getattr__(name: str):
        if name in __all__:
            missing = 'mmengine' if _WITH_TORCH else 'torch'
            raise ImportError(f'mmgdrq.{name} needs {missing}, which is not installed. Run `pip install {missing}`')
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
