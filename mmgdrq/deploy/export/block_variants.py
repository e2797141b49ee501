"""Other forms of a quantized block, to compare it with: in float, and with 8-bit inputs and weights."""

from collections.abc import Callable
from dataclasses import replace

from ..engines.block import Block

INT8_LEVELS = {False: 255, True: 127}


def low_bit(block: Block) -> Block:
    """The block as it is."""
    return block


def as_float(block: Block) -> Block:
    """The same layer in float: what the network costs without quantization."""
    scale = block.scale if block.step is None else block.scale / block.step
    return replace(block, bits=32, step=None, limits=None, scale=scale)


def as_int8(block: Block) -> Block:
    """The same layer with 8-bit inputs of the same range, and weight codes that are stored as int8."""
    if not block.is_integer:
        return block
    signed = block.limits[0] < 0
    finer = INT8_LEVELS[signed] / block.limits[1]
    limits = (-128, 127) if signed else (0, 255)
    return replace(block, bits=8, step=block.step / finer, scale=block.scale / finer, limits=limits)


FORMS: dict[str, Callable[[Block], Block]] = {'low-bit': low_bit, 'int8': as_int8, 'float': as_float}
