"""Register the operators with torch, which picks one by device, and choose between them and the reference.

The registered ones are ``torch.ops.mmgdrq.*``: C on a CPU, Triton on CUDA, the reference wherever neither can work.
They have no gradients of their own; the functions of :mod:`mmgdrq.quant` that call them do.
"""

from functools import cache, partial
from types import ModuleType, SimpleNamespace
from typing import Callable, Optional

import torch
from torch import Tensor

from . import cpu, reference

_SCHEMAS = {
    'encode': '(Tensor x, Tensor(a!) values, Tensor(b!)? stored, Tensor(c!)? inside, Tensor(d!)? statistic, '
    'Tensor(e!)? step, Tensor threshold, int levels, float floor, int lowest, int highest, bool flagged, '
    'bool powers) -> ()',
    'encode_rows': '(Tensor x, Tensor steps, Tensor(a!) values, int lowest, int highest, float offset) -> ()',
    'encode_mean_rows': '(Tensor x, Tensor(a!) steps, Tensor(b!) values, int lowest, int highest, float offset, '
    'float k, int levels, float floor) -> ()',
    'decode': '(Tensor stored, Tensor steps, Tensor(a!) values, int lowest, int bits) -> ()',
    'mask': '(Tensor(a!) grad, Tensor stored, int shift) -> ()',
    'clip_rows': '(Tensor(a!) x, Tensor? bounds, float k) -> ()',
    'fake_quantize': '(Tensor x, Tensor step, int lowest, int highest, float offset) -> Tensor',
    'learned_gradients': '(Tensor x, Tensor grad, Tensor step, int lowest, int highest, float offset) '
    '-> (Tensor, Tensor)',
    'sum_and_count': '(Tensor x) -> Tensor',
    'power_sums': '(Tensor x) -> Tensor',
    'sum_and_count_rows': '(Tensor x) -> Tensor',
}
_FAKES: dict[str, Callable] = {
    'fake_quantize': lambda x, *_: torch.empty_like(x),
    'learned_gradients': lambda x, grad, step, *_: (torch.empty_like(x), torch.empty_like(step)),
    'sum_and_count': lambda x: x.new_empty(2, dtype=torch.float64),
    'power_sums': lambda x: x.new_empty(2, dtype=torch.float64),
    'sum_and_count_rows': lambda x: x.new_empty(2, x.shape[0], dtype=torch.float32),
}
"""Shapes and dtypes for torch.compile; the other operators return nothing."""

COMPILES = hasattr(torch.library, 'register_fake') and hasattr(torch.compiler, '_is_exporting_flag')
"""Whether torch.compile can keep the operators, and a graph to compile be told from one to export."""


def operators(kernels: bool = True):
    """Where the operators are, each a function as in :mod:`mmgdrq.kernels.reference`.

    Args:
        kernels: a model's execution switch; off: the reference.

    Graphs that go to other programs (``torch.jit.trace``, ``torch.export``) hold operations of torch alone.
    """
    if not kernels:
        return reference
    if torch.compiler.is_compiling():
        return _registered if COMPILES and not torch.compiler._is_exporting_flag else reference
    return reference if torch.jit.is_tracing() else _registered


def packs_signs(x: Tensor, kernels: bool) -> bool:
    """Whether the ReLU of :mod:`mmgdrq.kernels.cpu`, which keeps one bit per element, works on a dense tensor."""
    return operators(kernels) is _registered and cpu.usable(x)


def _on_cpu(name: str, x: Tensor, *args):
    return getattr(cpu if cpu.usable(x) else reference, name)(x, *args)


def _on_cuda(name: str, x: Tensor, *args):
    return getattr(_triton_for(x) or reference, name)(x, *args)


def _triton_for(x: Tensor) -> Optional[ModuleType]:
    triton = _triton()
    return triton if triton and triton.usable(x) else None


@cache
def _triton() -> Optional[ModuleType]:
    try:
        from . import cuda
    except ImportError:  # Triton comes with torch for CUDA
        return None
    return cuda


_ON_CUDA = ('encode', 'encode_rows', 'encode_mean_rows', 'decode', 'mask')
"""Operators that have a Triton kernel."""


def _register(library: torch.library.Library) -> SimpleNamespace:
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
        plain = getattr(reference, name)
        library.impl(name, plain, 'CompositeExplicitAutograd')
        library.impl(name, partial(_on_cpu, name) if cpu.built() else plain, 'CPU')
        library.impl(name, partial(_on_cuda, name) if name in _ON_CUDA else plain, 'CUDA')
        library.impl(name, torch.library.fallthrough_kernel, 'Autograd')
        if hasattr(torch.library, 'register_fake'):
            torch.library.register_fake(f'mmgdrq::{name}', _FAKES.get(name, lambda *_: None), lib=library)
    return SimpleNamespace(**{name: getattr(torch.ops.mmgdrq, name).default for name in _SCHEMAS})


_library = torch.library.Library('mmgdrq', 'DEF')
_registered = _register(_library)
