"""The compiled functions of kernels.c, for float32 tensors on a CPU.

They compute what the torch path next to each call computes, in one pass over memory. Where the library was not
built (no C compiler when mmgdrq was installed), :func:`usable` is False.
"""

import ctypes
import warnings
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

_FLOAT, _INT, _LONG, _POINTER = ctypes.c_float, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p

_SIGNATURES = {
    'encode': [_POINTER] * 6 + [_LONG] + [_FLOAT] * 5 + [_INT, _INT, _INT],
    'statistic': [_POINTER, _POINTER, _LONG, _FLOAT, _INT, _INT],
    'encode_rows': [_POINTER] * 3 + [_LONG, _LONG] + [_FLOAT] * 3 + [_INT],
    'encode_mean_rows': [_POINTER] * 3 + [_LONG, _LONG] + [_FLOAT] * 6 + [_INT],
    'learned_backward': [_POINTER] * 5 + [_LONG, _LONG] + [_FLOAT] * 3 + [_INT],
    'sum_rows': [_POINTER, _POINTER, _LONG, _LONG, _INT],
    'decode': [_POINTER] * 3 + [_LONG, _LONG, _INT, _INT, _INT],
    'mask': [_POINTER, _POINTER, _LONG, _INT, _INT],
    'relu': [_POINTER] * 3 + [_LONG, _INT],
    'relu_backward': [_POINTER] * 3 + [_LONG, _INT],
    'checksum': [_POINTER, _POINTER, _LONG, _INT],
    'clip_rows': [_POINTER, _POINTER, _LONG, _LONG, _FLOAT, _INT],
}


def _load(folder: Path = Path(__file__).parent) -> Optional[ctypes.CDLL]:
    reasons = []
    for path in sorted(folder.glob('_kernels.*')):
        try:
            return _declare(ctypes.CDLL(str(path)))
        except (OSError, AttributeError) as error:  # of another machine, or of another version of kernels.c
            reasons.append(str(error))
    if reasons:
        warnings.warn(
            f'the compiled functions of mmgdrq cannot be used, and training on a CPU is slower: {reasons[-1]}. '
            'Install mmgdrq again to build them',
            stacklevel=2,
        )
    return None


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, types in _SIGNATURES.items():
        function = getattr(library, f'mmgdrq_{name}')
        function.argtypes, function.restype = types, None
    return library


_library = _load()


def built() -> bool:
    """Whether the library is there."""
    return _library is not None


def usable(*tensors: Tensor) -> bool:
    """Whether the library can work on these tensors: float32 on a CPU, without gaps in memory."""
    return _library is not None and all(
        t.device.type == 'cpu' and t.dtype == torch.float32 and type(t) in _PLAIN for t in tensors
    )


_PLAIN = (Tensor, torch.nn.Parameter)


def encode(
    x: Tensor,
    values: Tensor,
    stored: Optional[Tensor],
    inside: Optional[Tensor],
    statistic: Optional[Tensor],
    step: Optional[Tensor],
    threshold: Tensor,
    levels: int,
    floor: float,
    limits: tuple[int, int],
    flagged: bool,
    powers: bool = False,
) -> None:
    """Fake-quantize an activation; what is None is not written.

    Args:
        x: the activation, ``n`` elements in any dense layout; the next four have the same.
        values: receives the fake-quantized values.
        stored: receives ``code - lowest``, with the flag in its highest bit where ``flagged``.
        inside: receives 1 where ``x`` was not clipped, else 0.
        statistic: float64, receives sum|x| and the number of nonzero elements.
        step: receives ``max(threshold / levels, floor)``.
        powers: ``statistic`` receives sum|x|^3 and sum(x^2) instead.
    """
    numbers = (x.numel(), threshold.item(), levels, floor, *limits, flagged, powers)
    _call('encode', x, values, stored, inside, statistic, step, *numbers)


def encode_rows(weight: Tensor, steps: Tensor, values: Tensor, limits: tuple[int, int], offset: float) -> None:
    """Fake-quantize a weight with one step a filter, or any dense tensor with one step."""
    rows = steps.numel()
    _call('encode_rows', weight, steps, values, rows, weight.numel() // rows, *limits, offset)


def encode_mean_rows(weight, steps, values, limits, offset: float, k: float, levels: int, floor: float) -> None:
    """The same with the range ``k * mean|W|`` of each filter; ``steps`` receives the steps."""
    _call('encode_mean_rows', weight, steps, values, *_rows(weight), *limits, offset, k, levels, floor)


def learned_backward(x, grad, steps, result, sums, limits: tuple[int, int], offset: float) -> None:
    """``result`` receives the gradient of ``x`` by LSQ, ``sums`` that of every step before its factor."""
    rows = steps.numel()
    _call('learned_backward', x, grad, steps, result, sums, rows, x.numel() // rows, *limits, offset)


def decode(stored: Tensor, steps: Tensor, values: Tensor, lowest: int, bits: int) -> None:
    """``values = ((stored & bits) + lowest) * step``, with one step or one a filter."""
    rows = steps.numel()
    _call('decode', stored, steps, values, rows, stored.numel() // rows, lowest, bits)


def mask(grad: Tensor, stored: Tensor, shift: int) -> None:
    """``grad *= stored >> shift``."""
    _call('mask', grad, stored, grad.numel(), shift)


def statistic(x: Tensor, result: Tensor) -> None:
    """sum|x| and the number of nonzero elements, float64."""
    _call('statistic', x, result, x.numel(), 1.0, False)


def power_sums(x: Tensor, result: Tensor, unit: float) -> None:
    """sum|x|^3 and sum(x^2), float64; ``unit`` is a magnitude that is typical of ``x``."""
    _call('statistic', x, result, x.numel(), unit, True)


def sum_rows(weight: Tensor, sums: Tensor) -> None:
    """sum|W| of every filter."""
    _call('sum_rows', weight, sums, *_rows(weight))


def clip_rows(weight: Tensor, bounds: Optional[Tensor], k: float) -> None:
    """Clip every filter to its bound in place; None: to ``k * mean|W|``."""
    _call('clip_rows', weight, bounds, *_rows(weight), k)
    increment_version(weight)


def relu(x: Tensor, result: Tensor, positive: Tensor) -> None:
    """``result = max(x, 0)``, which may be ``x`` itself; ``positive`` receives one bit an element."""
    _call('relu', x, result, positive, x.numel())
    if result is x:
        increment_version(x)


def relu_backward(grad: Tensor, positive: Tensor, result: Tensor) -> None:
    """``result = grad`` where the bit is set, else 0."""
    _call('relu_backward', grad, positive, result, grad.numel())


def checksum(x: Tensor) -> int:
    """A number that depends on every bit of a dense tensor of any dtype, and on its place."""
    result = ctypes.c_uint64()
    _call('checksum', x, ctypes.addressof(result), x.numel() * x.element_size())
    return result.value


def _rows(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.numel() // weight.shape[0]


def _call(name: str, *args) -> None:
    """Tensors pass as pointers, None as NULL; the number of threads is added."""
    function = getattr(_library, f'mmgdrq_{name}')
    passed = [_pointer(arg, kind) if isinstance(arg, Tensor) else arg for arg, kind in zip(args, function.argtypes)]
    function(*passed, torch.get_num_threads())


def _pointer(tensor: Tensor, kind: type) -> int:
    if kind is not _POINTER:  # as the size of a tensor while torch.jit traces
        raise TypeError(f'a kernel expects a number, not a tensor of shape {tuple(tensor.shape)}')
    return tensor.data_ptr()
