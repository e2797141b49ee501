"""Call the compiled functions of kernels.c, for float32 tensors on a CPU: one pass over memory each.

Where the library was not built (no C compiler when mmgdrq was installed), :func:`usable` is False.
"""

import ctypes
import warnings
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import reference
from .scratch import dense

_FLOAT, _INT, _LONG, _POINTER = ctypes.c_float, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p

_SIGNATURES = {
    'encode': [_POINTER] * 6 + [_LONG] + [_FLOAT] * 5 + [_INT, _INT, _INT],
    'statistic': [_POINTER, _POINTER, _LONG, _FLOAT, _INT, _INT],
    'encode_rows': [_POINTER] * 3 + [_LONG, _LONG] + [_FLOAT] * 3 + [_INT],
    'encode_mean_rows': [_POINTER] * 3 + [_LONG, _LONG] + [_FLOAT] * 6 + [_INT],
    'learned_backward': [_POINTER] * 5 + [_LONG, _LONG] + [_FLOAT] * 3 + [_INT],
    'sum_and_count_rows': [_POINTER, _POINTER, _LONG, _LONG, _INT],
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
    """Whether the library can work on these tensors: float32 (or codes) on a CPU."""
    return _library is not None and all(t.dtype in _DTYPES and t.device.type == 'cpu' for t in tensors)


_DTYPES = (torch.float32, torch.uint8)


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
    lowest: int,
    highest: int,
    flagged: bool,
    powers: bool,
) -> None:
    """As :func:`mmgdrq.kernels.reference.encode`; powers are summed up in units of the threshold."""
    numbers = (x.numel(), threshold.item(), levels, floor, lowest, highest, flagged, powers)
    _call('encode', x, values, stored, inside, statistic, step, *numbers)


def encode_rows(x: Tensor, steps: Tensor, values: Tensor, lowest: int, highest: int, offset: float) -> None:
    """As :func:`mmgdrq.kernels.reference.encode_rows`."""
    rows = steps.numel()
    _call('encode_rows', x, steps, values, rows, x.numel() // rows, lowest, highest, offset)


def encode_mean_rows(
    x: Tensor,
    steps: Tensor,
    values: Tensor,
    lowest: int,
    highest: int,
    offset: float,
    k: float,
    levels: int,
    floor: float,
) -> None:
    """As :func:`mmgdrq.kernels.reference.encode_mean_rows`."""
    _call('encode_mean_rows', x, steps, values, *_rows(x), lowest, highest, offset, k, levels, floor)


def decode(stored: Tensor, steps: Tensor, values: Tensor, lowest: int, bits: int) -> None:
    """As :func:`mmgdrq.kernels.reference.decode`."""
    rows = steps.numel()
    _call('decode', stored, steps, values, rows, stored.numel() // rows, lowest, bits)


def mask(grad: Tensor, stored: Tensor, shift: int) -> None:
    """As :func:`mmgdrq.kernels.reference.mask`."""
    if grad.stride() != stored.stride():
        return reference.mask(grad, stored, shift)
    _call('mask', grad, stored, grad.numel(), shift)


def fake_quantize(x: Tensor, step: Tensor, lowest: int, highest: int, offset: float) -> Tensor:
    """As :func:`mmgdrq.kernels.reference.fake_quantize`."""
    if not _by_rows(x, step):
        return reference.fake_quantize(x, step, lowest, highest, offset)
    values = torch.empty_like(x)
    encode_rows(x, step, values, lowest, highest, offset)
    return values


def learned_gradients(
    x: Tensor, grad: Tensor, step: Tensor, lowest: int, highest: int, offset: float
) -> tuple[Tensor, Tensor]:
    """As :func:`mmgdrq.kernels.reference.learned_gradients`."""
    if not (_by_rows(x, step) and usable(grad) and grad.stride() == x.stride()):
        return reference.learned_gradients(x, grad, step, lowest, highest, offset)
    result, sums = torch.empty_like(x), torch.empty_like(step)
    rows = step.numel()
    _call('learned_backward', x, grad, step, result, sums, rows, x.numel() // rows, lowest, highest, offset)
    return result, sums


def sum_and_count(x: Tensor) -> Tensor:
    """As :func:`mmgdrq.kernels.reference.sum_and_count`."""
    result = torch.empty(2, dtype=torch.float64)
    _call('statistic', dense(x), result, x.numel(), 1.0, False)
    return result


def power_sums(x: Tensor) -> Tensor:
    """As :func:`mmgdrq.kernels.reference.power_sums`."""
    x, result = dense(x), torch.empty(2, dtype=torch.float64)
    _call('statistic', x, result, x.numel(), reference.largest_unit(x).item(), True)
    return result


def sum_and_count_rows(x: Tensor) -> Tensor:
    """As :func:`mmgdrq.kernels.reference.sum_and_count_rows`."""
    result = torch.empty(2, x.shape[0])
    _call('sum_and_count_rows', x.contiguous(), result, *_rows(x))
    return result


def clip_rows(x: Tensor, bounds: Optional[Tensor], k: float) -> None:
    """As :func:`mmgdrq.kernels.reference.clip_rows`."""
    if dense(x) is not x:
        return reference.clip_rows(x, bounds, k)
    _call('clip_rows', x, bounds, *_rows(x), k)
    increment_version(x)


def relu(x: Tensor, result: Tensor, positive: Tensor) -> None:
    """``result = max(x, 0)``, which may be ``x`` itself; ``positive`` receives one bit per element."""
    _call('relu', x, result, positive, x.numel())
    if result is x:
        increment_version(x)


def relu_backward(grad: Tensor, positive: Tensor, result: Tensor) -> None:
    """``result = grad`` where the bit is set, else 0."""
    _call('relu_backward', grad, positive, result, grad.numel())


def checksum(x: Tensor) -> tuple[int, ...]:
    """A number that depends on every bit of a dense tensor of any dtype, and on its place."""
    if _library is None:
        return reference.checksum(x)
    result = ctypes.c_uint64()
    _call('checksum', x, ctypes.addressof(result), x.numel() * x.element_size())
    return (result.value,)


def _by_rows(x: Tensor, step: Tensor) -> bool:
    """Whether the library can work on ``x`` with one step for all of it, or one a row."""
    by_rows = step.numel() == 1 or (step.dim() == x.dim() and step.numel() == x.shape[0] == step.shape[0])
    return by_rows and usable(step) and x.numel() > 0 and dense(x) is x and step.is_contiguous()


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
