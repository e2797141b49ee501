"""Define every operator by functions of torch, for any device and floating dtype.

What is called ``result``, ``values``, ``stored``, ``inside``, ``statistic``, ``step`` or ``steps`` in a function that
returns nothing receives what it computes. The other implementations give the same bits, but for the order of sums.
"""

from typing import Any, Optional

import torch
from torch import Tensor

from .scratch import dense, take, unit_of

INSIDE = 128
"""Bit of a code that marks an element inside the range."""


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
    """Fake-quantize an activation; what is None is not written, except that ``step`` comes with ``stored``.

    Args:
        x: the activation, in any dense layout; the next four have the same.
        values: receives the fake-quantized values, in the dtype of ``x``.
        stored: uint8, receives ``code - lowest``, with the flag ``INSIDE`` where ``flagged``.
        inside: uint8, receives 1 where ``x`` was not clipped, else 0.
        statistic: float64, shape ``(2,)``, receives :func:`sum_and_count`.
        step: float32 scalar, receives ``max(threshold / levels, floor)``.
        threshold: scalar T.
        levels: steps between 0 and T.
        floor: smallest step.
        lowest, highest: limits of the codes; a lowest code of 0 clips to [0, T], else to [-T, T].
        powers: ``statistic`` receives :func:`power_sums` instead.
    """
    x = x.float()
    if statistic is not None:
        statistic.copy_((power_sums if powers else sum_and_count)(x))
    scale = (threshold.float() / levels).clamp(min=floor)
    codes = _float32(values)
    torch.div(x, scale, out=codes).round_().clamp_(lowest, highest)
    if stored is not None and step is not None:
        _to_bytes(codes, stored, lowest, highest)
        step.copy_(scale)
        if flagged or inside is not None:
            within = _inside(x, threshold, lowest)
            if inside is not None:
                inside.copy_(within)
            if flagged:
                stored.add_(within.mul_(INSIDE))
    _store(codes.mul_(scale), values)


def encode_rows(x: Tensor, steps: Tensor, values: Tensor, lowest: int, highest: int, offset: float) -> None:
    """Fake-quantize a dense tensor with one step, or one for each entry of its first dimension."""
    codes = _float32(values)
    torch.div(x.float(), steps, out=codes)
    if offset:
        codes.sub_(offset)
    codes.round_().clamp_(lowest, highest)
    _store((codes.add_(offset) if offset else codes).mul_(steps), values)


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
    """:func:`encode_rows` with the range ``k * mean|row|`` of each row, zeros left out.

    ``steps`` receives the steps, float32.
    """
    steps.copy_((_mean_rows(x) * k / levels).clamp(min=floor).reshape(steps.shape))
    encode_rows(x, steps, values, lowest, highest, offset)


def decode(stored: Tensor, steps: Tensor, values: Tensor, lowest: int, bits: int) -> None:
    """``values = ((stored & bits) + lowest) * steps``, float32; steps as in :func:`encode_rows`."""
    codes = stored
    if bits != 255:
        codes = torch.bitwise_and(stored, bits, out=take('bytes', stored, torch.uint8))
    if lowest:
        shifted = take('bytes', stored, torch.uint8)
        codes = torch.add(codes, lowest % 256, out=shifted).view(torch.int8)  # modulo 256
    values.copy_(codes).mul_(steps)


def mask(grad: Tensor, stored: Tensor, shift: int) -> None:
    """``grad *= stored >> shift``."""
    if shift:
        stored = torch.bitwise_right_shift(stored, shift, out=take('bytes', stored, torch.uint8))
    grad.mul_(take('work', stored, torch.float32).copy_(stored))


def fake_quantize(x: Tensor, step: Tensor, lowest: int, highest: int, offset: float) -> Tensor:
    """Values of ``x`` on a grid, in its dtype; ``step`` broadcasts against ``x``."""
    codes = round_to_codes_(torch.div(x.float(), step), lowest, highest, offset)
    values = (codes + offset if offset else codes) * step
    # a conversion that changes nothing makes torch.compile lose the gradient of a Function (torch 2.11)
    return values if values.dtype == x.dtype else values.to(x.dtype)


def round_to_codes_(scaled: Tensor, lowest: int, highest: int, offset: float) -> Tensor:
    """``clip(round(scaled - offset))`` in place; ``scaled`` is in units of the step."""
    if offset:
        scaled.sub_(offset)
    return scaled.round_().clamp_(lowest, highest)


def learned_gradients(
    x: Tensor, grad: Tensor, step: Tensor, lowest: int, highest: int, offset: float
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`fake_quantize` by LSQ (Esser et al., ICLR 2020, equations 2 to 5).

    Returns:
        those of ``x`` and of ``step``, in their shapes.
    """
    inside, slope = learned_slope(x, step, lowest, highest, offset)
    return grad * inside, (grad.float() * slope).sum_to_size(step.shape)


def learned_slope(x: Tensor, step: Tensor, lowest: int, highest: int, offset: float) -> tuple[Tensor, Tensor]:
    """Where the gradient of ``x`` passes (bool), and the slope of the values over the step."""
    scaled = torch.div(x.float(), step)
    levels = round_to_codes_(scaled.clone(), lowest, highest, offset).add_(offset)
    inside = (scaled >= lowest) & (scaled <= highest + 2 * offset)  # midrise: half a step beyond the outer levels
    return inside, torch.where(inside, levels - scaled, levels)


def sum_and_count(x: Tensor) -> Tensor:
    """sum|x| and the number of elements that are not zero: float64, shape ``(2,)``."""
    x = dense(x).float()
    if x.device.type != 'cpu' or torch.compiler.is_compiling():
        return torch.stack([torch.linalg.vector_norm(x, norm).double() for norm in (1, 0)])
    magnitude = torch.abs(x, out=take('work', x, torch.float32))  # norms are not vectorized on a CPU
    return torch.stack([magnitude.sum().double(), magnitude.sign_().sum().double()])


def power_sums(x: Tensor) -> Tensor:
    """sum|x|^3 and sum(x^2), whose quotient is the Lehmer mean of order 3 of the magnitudes: float64, shape ``(2,)``.

    They are summed up in units of the largest magnitude, so that no cube overflows.
    """
    x = dense(x).float()
    unit = largest_unit(x)
    magnitude = torch.div(x, unit).abs_()
    squares = magnitude.square()
    unit = unit.double()
    return torch.stack([magnitude.mul_(squares).sum() * unit**3, squares.sum() * unit**2])


def largest_unit(x: Tensor) -> Tensor:
    """The power of two below the largest magnitude of ``x``."""
    low, high = x.aminmax()
    return unit_of(torch.maximum(high, -low))


def sum_and_count_rows(x: Tensor) -> Tensor:
    """sum|x| and the number of elements that are not zero, of every row of a matrix: float32, shape ``(2, rows)``."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    sums = torch.linalg.vector_norm(x, 1, dim=1, dtype=dtype).float()
    return torch.stack([sums, (x != 0).sum(1, dtype=torch.float32)])  # OpenVINO has no norm 0 of rows


def _mean_rows(x: Tensor) -> Tensor:
    sums, counts = sum_and_count_rows(x.reshape(x.shape[0], -1)).unbind()
    return sums / counts.clamp(min=1)


def clip_rows(x: Tensor, bounds: Optional[Tensor], k: float) -> None:
    """Clip each entry of the first dimension to its bound in place; None: to ``k * mean|row|``, zeros left out."""
    if bounds is None:
        bounds = _mean_rows(x) * k
    bounds = bounds.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    torch.clamp(x, -bounds, bounds, out=x)


def checksum(x: Tensor) -> tuple[int, ...]:
    """Numbers that depend on every bit of a dense CPU tensor, and on its place."""
    flat = x.as_strided((x.numel(),), (1,)).view(torch.uint8).long()
    return int(flat.sum()), int(flat.mul_(torch.arange(1, flat.numel() + 1)).sum())


def _float32(values: Tensor) -> Tensor:
    """Memory for float32 numbers: that of ``values`` where they are."""
    return values if values.dtype == torch.float32 else take('float32', values, torch.float32)


def _store(computed: Tensor, values: Tensor) -> None:
    if computed is not values:
        values.copy_(computed)


def _to_bytes(codes: Tensor, stored: Tensor, lowest: int, highest: int) -> None:
    """``stored = codes - lowest``. torch converts to int8 twice as fast as to uint8."""
    if highest > 127:
        stored.copy_(codes)
        return
    stored.view(torch.int8).copy_(codes)
    if lowest:
        stored.sub_(lowest % 256)


def _inside(x: Tensor, threshold: Tensor, lowest: int) -> Tensor:
    """1 where ``x`` lies inside the range, else 0, as uint8. Arithmetic is vectorized, comparing is not."""
    clipped = take('work', x, torch.float32)
    high: Any = threshold.item() if x.device.type == 'cpu' else threshold
    torch.clamp(x, -high if lowest else high * 0, high, out=clipped)
    outside = take('bytes', x, torch.uint8)
    outside.view(torch.bool).copy_(clipped.sub_(x))
    return outside.bitwise_xor_(1)
