"""Which kernels work on a tensor: compiled ones on a CPU, Triton's on CUDA, or none (the torch path)."""

from functools import cache
from types import ModuleType
from typing import Optional

import torch
from torch import Tensor

from . import cpu as native

_enabled = True


def enable(flag: bool) -> None:
    """Use kernels, or the torch path in their place, in the whole process; the results are the same."""
    global _enabled
    _enabled = flag


def kernels_for(*tensors: Tensor) -> Optional[ModuleType]:
    """The module ``native`` or ``triton_kernels``, or None, as where torch records what a model computes."""
    if not _enabled or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if native.usable(*tensors):
        return native
    kernels = _triton() if tensors[0].is_cuda else None
    return kernels if kernels and kernels.usable(*tensors) else None


@cache
def _triton() -> Optional[ModuleType]:
    try:
        from . import cuda as triton_kernels
    except ImportError:  # it comes with torch for CUDA
        return None
    return triton_kernels


def on_cpu(*tensors: Tensor) -> bool:
    """Whether ``native`` works on the tensors."""
    return kernels_for(*tensors) is native
