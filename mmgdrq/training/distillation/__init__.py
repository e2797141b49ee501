"""Distillation: the float network teaches the quantized one while it trains."""

from .distiller import Distiller, Tap
from .settings import Distillation
from .teacher import make_teacher

__all__ = ['Distillation', 'Distiller', 'Tap', 'make_teacher']
