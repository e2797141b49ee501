"""Run deployed models with numpy and an engine: neither torch nor OpenMMLab is imported."""

from .drawing import draw
from .errors import CheckpointError, ExportError, InputError, MMGDRQError
from .model import Model, load
from .results import Classification, Detections, Segmentation

__all__ = [
    'CheckpointError',
    'Classification',
    'Detections',
    'ExportError',
    'InputError',
    'MMGDRQError',
    'Model',
    'Segmentation',
    'draw',
    'load',
]
