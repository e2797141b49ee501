"""Hooks for mmengine's Runner, one a file."""

from .checkpoint import CheckpointFitHook, DeployedModelHook
from .gdrq import GDRQHook
from .range_check import RangeCheckHook
from .safe_checkpoint import SafeCheckpointHook
from .scale_clip import ScaleClipHook

__all__ = [
    'CheckpointFitHook',
    'DeployedModelHook',
    'GDRQHook',
    'RangeCheckHook',
    'SafeCheckpointHook',
    'ScaleClipHook',
]
