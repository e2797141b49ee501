"""Hooks for mmengine's Runner, one a file."""

from .checkpoint_fit_hook import CheckpointFitHook
from .deployed_model_hook import DeployedModelHook
from .gdrq_hook import GDRQHook
from .range_check_hook import RangeCheckHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .scale_clip_hook import ScaleClipHook

__all__ = [
    'CheckpointFitHook',
    'DeployedModelHook',
    'GDRQHook',
    'RangeCheckHook',
    'SafeCheckpointHook',
    'ScaleClipHook',
]
