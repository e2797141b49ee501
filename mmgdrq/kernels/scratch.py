"""Reused memory for values that live only inside one call.

On a CPU every large new tensor costs page faults, which take as long as several arithmetic passes over it. Each
thread keeps one buffer a slot, as large as the largest tensor it has held. Elsewhere the device's own caching
allocator does that, and the functions just allocate.
"""

import math
import threading
from typing import Any

import torch
from torch import Tensor

_buffers = threading.local()


def dense(x: Tensor) -> Tensor:
    """``x`` itself if it fills its memory without gaps (also channels last), else a contiguous copy."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def take(slot: str, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialized memory with the shape and layout of ``like``.

    Args:
        slot: name of the buffer; the next call with that name overwrites it.
        like: a tensor as :func:`dense` returns it.
        dtype: of the result.
    """
    if like.device.type != 'cpu':
        return torch.empty_like(like, dtype=dtype, requires_grad=False)
    held: dict[Any, Tensor] = _buffers.__dict__
    size = math.prod(like.shape)
    buffer = held.get((slot, dtype))
    if buffer is None or buffer.numel() < size:
        held.pop((slot, dtype), None)
        with torch.inference_mode(False):  # usable inside and outside of inference mode
            buffer = held[slot, dtype] = torch.empty(size, dtype=dtype)
    return buffer[:size].as_strided(like.shape, like.stride())


TINY = 1e-30
"""Floor of the unit in which powers are summed up."""


def unit_of(magnitude: Tensor) -> Tensor:
    """The power of two below a float32 scalar; dividing by it rounds nothing."""
    return (magnitude.clamp(min=TINY).view(torch.int32) & 0x7F800000).view(torch.float32)
