"""From a trained quantized model to a deployable one."""

from .fold import fold

__all__ = ['fold']
