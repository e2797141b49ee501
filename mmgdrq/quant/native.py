"""The compiled functions of kernels.c, for float32 tensors on a CPU.

They compute what the torch path next to each call computes, in one pass over memory. Where the library was not
built (no C compiler when mmgdrq was installed) or :func:`enable` switched it off, :func:`usable` is False.
"""

import ctypes
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

_FLOAT, _INT, _LONG, _POINTER = ctypes.c_float, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p

_SIGNATURES = {
    'encode': [_POINTER] * 6 + [_LONG] + [_FLOAT] * 5 + [_INT, _INT],
    'statistic': [_POINTER, _POINTER, _LONG, _INT],
    'encode_rows': [_POINTER] * 4 + [_LONG, _LONG, _FLOAT, _FLOAT, _INT],
    'encode_mean_rows': [_POINTER] * 4 + [_LONG, _LONG] + [_FLOAT] * 5 + [_INT],
    'sum_rows': [_POINTER, _POINTER, _LONG, _LONG, _INT],
    'decode': [_POINTER] * 3 + [_LONG, _LONG, _INT, _INT, _INT],
    'mask': [_POINTER, _POINTER, _LONG, _INT, _INT],
    'relu': [_POINTER, _POINTER, _LONG, _INT],
    'relu_backward': [_POINTER] * 3 + [_LONG, _INT],
    'clip_rows': [_POINTER, _POINTER, _LONG, _LONG, _FLOAT, _INT],
}


def _load() -> Optional[ctypes.CDLL]:
    for path in sorted(Path(__file__).parent.glob('_kernels.*')):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # built for another machine, or torch has no OpenMP
            continue
        for name, types in _SIGNATURES.items():
            function = getattr(library, f'mmgdrq_{name}')
            function.argtypes, function.restype = types, None
        return library
    return None


_library = _load()
_enabled = True


def built() -> bool:
    """Whether the library is there."""
    return _library is not None


def enable(flag: bool) -> None:
    """Use the library, or take the torch path in its place; the results are the same."""
    global _enabled
    _enabled = flag


def usable(*tensors: Tensor) -> bool:
    """Whether the library can work on these tensors: float32 on a CPU, without gaps in memory."""
    return (
        _library is not None
        and _enabled
        and not torch.compiler.is_compiling()
        and all(t.device.type == 'cpu' and t.dtype == torch.float32 and type(t) in _PLAIN for t in tensors)
    )


_PLAIN = (Tensor, torch.nn.Parameter)


def call(name: str, *args) -> None:
    """Call a function of the library: tensors pass as pointers, None as NULL; the number of threads is added."""
    passed = [arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args]
    getattr(_library, f'mmgdrq_{name}')(*passed, torch.get_num_threads())
