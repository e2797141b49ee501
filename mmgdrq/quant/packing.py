"""Integers at their real bit-width: ``bits`` bits each, least significant bit first."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int, lowest: int, stride: int = 1) -> Tensor:
    """Pack integers into bytes.

    Args:
        codes: integers ``lowest + n * stride`` with n from 0 to 2**bits - 1, any shape, any dtype.
        bits: 1 to 8.
        lowest: the integer that is stored as 0.
        stride: distance of two integers; 2 for the weights of a midrise grid.

    Returns:
        uint8, shape ``(ceil(codes.numel() * bits / 8),)``.

    Raises:
        ValueError: an integer does not fit.

    >>> pack(torch.tensor([-2, -1, 0, 1]), 2, -2)
    tensor([228], dtype=torch.uint8)
    """
    offset = codes.detach().reshape(-1).to(torch.int64) - lowest
    if offset.numel() and not 0 <= int(offset.min()) <= int(offset.max()) < stride * 2**bits:
        raise ValueError(f'codes from {int(codes.min())} to {int(codes.max())} do not fit {bits} bits from {lowest}')
    if stride > 1:
        if bool((offset % stride).any()):
            raise ValueError(f'some codes are not {lowest} plus a multiple of {stride}')
        offset = offset // stride
    shifts = torch.arange(8, dtype=torch.uint8, device=codes.device)
    stream = (offset.to(torch.uint8)[:, None] >> shifts[:bits]) & 1
    stream = torch.nn.functional.pad(stream.reshape(-1), (0, -stream.numel() % 8))
    return (stream.reshape(-1, 8) << shifts).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, lowest: int, shape: Sequence[int], stride: int = 1) -> Tensor:
    """Restore the integers that :func:`pack` stored.

    Returns:
        int8 (int16 for 8-bit codes that start at 0), shape ``shape``.

    Raises:
        ValueError: the number of bytes does not fit ``shape``.

    >>> unpack(torch.tensor([228], dtype=torch.uint8), 2, -2, (2, 2))
    tensor([[-2, -1],
            [ 0,  1]], dtype=torch.int8)
    """
    count = math.prod(shape)
    expected = -(-(count * bits) // 8)
    if packed.dtype != torch.uint8 or packed.numel() != expected:
        raise ValueError(
            f'{packed.numel()} bytes of {packed.dtype} do not hold {count} codes of {bits} bits, '
            f'which need {expected} bytes of torch.uint8'
        )
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    stream = (packed.reshape(-1, 1) >> shifts) & 1
    stream = stream.reshape(-1)[: count * bits].reshape(count, bits)
    codes = (stream << shifts[:bits]).sum(1, dtype=torch.int16) * stride + lowest
    return codes.to(torch.int8 if lowest < 0 else torch.int16).reshape(tuple(shape))
