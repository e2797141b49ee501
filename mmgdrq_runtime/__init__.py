"""Run deployed models with numpy and an engine: neither torch nor OpenMMLab is imported."""

from .errors import CheckpointError, ExportError, InputError, MMGDRQError

__all__ = ['CheckpointError', 'ExportError', 'InputError', 'MMGDRQError']
