"""Operators for CUDA, written in Triton; imported only where Triton is installed.

Each reads its input once and writes its output once. The arithmetic is that of the reference: an IEEE division, a
rounding half to even (by adding and subtracting 1.5 * 2^23, exact for clipped codes) and a multiplication.
Thresholds and steps stay on the device, so nothing synchronizes.
"""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .scratch import unit_of

BLOCK = 4096

_MAGIC = tl.constexpr(12582912.0)
_FAR = tl.constexpr(1e6)
_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _codes_of(x, step, offset, lowest, highest):
    scaled = tl.div_rn(x, step) - offset
    # without _NAN, maximum and minimum would give the other operand
    clipped = tl.minimum(tl.maximum(scaled, lowest, _NAN), highest, _NAN)
    return (clipped + _MAGIC) - _MAGIC


@triton.jit
def _encode(
    x_ptr, values_ptr, stored_ptr, inside_ptr, sums_ptr, step_ptr, threshold_ptr, unit_ptr, n, levels, floor, lowest,
    highest, KEEP: tl.constexpr, FLAGGED: tl.constexpr, INSIDE: tl.constexpr, SUMS: tl.constexpr, POWERS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    offsets = program * BLOCK + tl.arange(0, BLOCK)
    valid = offsets < n
    x = tl.load(x_ptr + offsets, valid, 0.0).to(tl.float32)
    threshold = tl.load(threshold_ptr)
    step = tl.maximum(tl.div_rn(threshold, levels), floor, _NAN)
    code = _codes_of(x, step, 0.0, lowest, highest)
    tl.store(values_ptr + offsets, (code * step).to(values_ptr.dtype.element_ty), valid)
    if KEEP:
        tl.store(step_ptr, step)
        stored = (code - lowest).to(tl.int32)
        inside = ((x >= tl.where(lowest < 0, -threshold, 0.0)) & (x <= threshold)).to(tl.int32)
        if FLAGGED:
            stored = stored | (inside << 7)
        if INSIDE:
            tl.store(inside_ptr + offsets, inside.to(tl.uint8), valid)
        tl.store(stored_ptr + offsets, stored.to(tl.uint8), valid)
    if SUMS:
        if POWERS:
            size = tl.abs(x / tl.load(unit_ptr))
            size = tl.where((size > _FAR) & (size < float('inf')), _FAR, size)
            total, weight = size * size * size, size * size
        else:
            total, weight = tl.abs(x), (x != 0).to(tl.float32)
        tl.store(sums_ptr + 2 * program, tl.sum(total, 0))
        tl.store(sums_ptr + 2 * program + 1, tl.sum(weight, 0))


@triton.jit
def _encode_rows(
    x_ptr, steps_ptr, values_ptr, columns, lowest, highest, offset, k, levels, floor,
    MEAN: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if MEAN:
        partial = tl.zeros([BLOCK], tl.float32)
        nonzero = tl.zeros([BLOCK], tl.float32)
        for index in range(BLOCKS):
            offsets = index * BLOCK + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + row * columns + offsets, offsets < columns, 0.0).to(tl.float32)
            partial += tl.abs(x)
            nonzero += (x != 0).to(tl.float32)
        mean = tl.div_rn(tl.sum(partial, 0), tl.maximum(tl.sum(nonzero, 0), 1.0))
        step = tl.maximum(tl.div_rn(mean * k, levels), floor, _NAN)
        tl.store(steps_ptr + row, step)
    else:
        step = tl.load(steps_ptr + row)
    for index in range(BLOCKS):
        offsets = index * BLOCK + tl.arange(0, BLOCK)
        valid = offsets < columns
        x = tl.load(x_ptr + row * columns + offsets, valid, 0.0).to(tl.float32)
        code = _codes_of(x, step, offset, lowest, highest)
        tl.store(values_ptr + row * columns + offsets, ((code + offset) * step).to(values_ptr.dtype.element_ty), valid)


@triton.jit
def _decode(stored_ptr, steps_ptr, values_ptr, n, columns, lowest, bits, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = offsets < n
    code = (tl.load(stored_ptr + offsets, valid, 0).to(tl.int32) & bits) + lowest
    step = tl.load(steps_ptr + offsets // columns, valid, 0.0)
    tl.store(values_ptr + offsets, (code.to(tl.float32) * step).to(values_ptr.dtype.element_ty), valid)


@triton.jit
def _mask(grad_ptr, stored_ptr, n, shift, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = offsets < n
    inside = tl.load(stored_ptr + offsets, valid, 0).to(tl.int32) >> shift
    grad = tl.load(grad_ptr + offsets, valid, 0.0)
    tl.store(grad_ptr + offsets, grad * inside.to(grad.dtype), valid)


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these tensors."""
    return all(t.is_cuda and t.dtype != torch.float64 for t in tensors)


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
    """As :func:`mmgdrq.kernels.reference.encode`."""
    programs = triton.cdiv(x.numel(), BLOCK)
    sums = torch.empty(programs, 2, dtype=torch.float32, device=x.device) if statistic is not None else None
    flags = dict(
        KEEP=stored is not None, FLAGGED=flagged, INSIDE=inside is not None, SUMS=sums is not None, POWERS=powers
    )
    pointers = [values if t is None else t for t in (stored, inside, sums, step)]
    grid = (float(levels), floor, float(lowest), float(highest))
    unit = unit_of(threshold) if powers else threshold
    _launch(_encode, programs, x, values, *pointers, threshold, unit, x.numel(), *grid, **flags, BLOCK=BLOCK)
    if statistic is not None and sums is not None:
        statistic.copy_(sums.sum(0, dtype=torch.float64))
        if powers:
            statistic.mul_(torch.stack([unit.double() ** 3, unit.double() ** 2]))


def encode_rows(x: Tensor, steps: Tensor, values: Tensor, lowest: int, highest: int, offset: float) -> None:
    """As :func:`mmgdrq.kernels.reference.encode_rows`."""
    if steps.numel() == 1 and not offset:  # an activation: many programs, not one
        encode(x, values, None, None, None, None, steps, 1, 0.0, lowest, highest, False, False)
        return
    _by_rows(x, steps, values, (lowest, highest, offset), 1.0, 1, 1.0, False)


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
    _by_rows(x, steps, values, (lowest, highest, offset), k, levels, floor, True)


def _by_rows(weight, steps, values, grid, k, levels, floor, mean) -> None:
    columns = weight.numel() // steps.numel()
    block = min(triton.next_power_of_2(columns), 1024)
    numbers = (*map(float, grid), float(k), float(levels), floor)
    shape = dict(BLOCKS=triton.cdiv(columns, block), BLOCK=block)
    _launch(_encode_rows, steps.numel(), weight, steps, values, columns, *numbers, MEAN=mean, **shape)


def decode(stored: Tensor, steps: Tensor, values: Tensor, lowest: int, bits: int) -> None:
    """As :func:`mmgdrq.kernels.reference.decode`."""
    n = stored.numel()
    columns = n // steps.numel()
    _launch(_decode, triton.cdiv(n, BLOCK), stored, steps, values, n, columns, lowest, bits, BLOCK=BLOCK)


def mask(grad: Tensor, stored: Tensor, shift: int) -> None:
    """As :func:`mmgdrq.kernels.reference.mask`."""
    _launch(_mask, triton.cdiv(grad.numel(), BLOCK), grad, stored, grad.numel(), shift, BLOCK=BLOCK)


def _launch(kernel, programs: int, x: Tensor, *args, **constants) -> None:
    """Run a kernel on the device of its first argument; Triton's own choice is the current device."""
    with torch.cuda.device_of(x):
        kernel[(programs,)](x, *args, **constants)
