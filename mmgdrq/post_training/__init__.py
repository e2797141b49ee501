"""Quantize a trained float model from a few images, without labels and without training."""

from .calibration import calibrate
from .report import CalibratedLayer, CalibrationReport

__all__ = ['CalibratedLayer', 'CalibrationReport', 'calibrate']
