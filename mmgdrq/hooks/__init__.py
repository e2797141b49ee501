"""Hooks for mmengine's Runner, one a file."""

from .gdrq import GDRQHook
from .scale_clip import ScaleClipHook

__all__ = ['GDRQHook', 'ScaleClipHook']
