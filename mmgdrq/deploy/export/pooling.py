"""Adaptive average pooling as ONNX nodes for images of any size: a product with one averaging matrix per dimension.

torch's exporter knows it only where the size of the input is known and a multiple of the output's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.onnx import register_custom_op_symbolic, symbolic_helper, unregister_custom_op_symbolic

OPERATOR = 'aten::adaptive_avg_pool2d'
FLOAT = 1  # of onnx.TensorProto


@contextmanager
def any_size_pooling(opset: int) -> Iterator[None]:
    """Inside the block, exports of this opset write adaptive average pooling for any size."""
    register_custom_op_symbolic(OPERATOR, _pooling, opset)
    try:
        yield
    finally:
        unregister_custom_op_symbolic(OPERATOR, opset)


@symbolic_helper.parse_args('v', 'is')
def _pooling(g, x, size):
    if size == [1, 1]:
        return g.op('GlobalAveragePool', x)
    rows, columns = (_averages(g, x, axis, cells) for axis, cells in zip((2, 3), size))
    return g.op('MatMul', g.op('MatMul', rows, x), g.op('Transpose', columns, perm_i=[1, 0]))


def _averages(g, x, axis: int, cells: int):
    """Matrix ``(cells, length)``: cell i averages ``floor(i length / cells)`` to ``ceil((i + 1) length / cells)``."""
    length = g.op('Gather', g.op('Shape', x), _number(g, axis), axis_i=0)
    number = g.op('Constant', value_t=torch.arange(cells).reshape(-1, 1))
    count, one = _number(g, cells), _number(g, 1)
    start = g.op('Div', g.op('Mul', number, length), count)
    end = g.op('Mul', g.op('Add', number, one), length)
    end = g.op('Div', g.op('Add', end, _number(g, cells - 1)), count)
    place = g.op('Range', _number(g, 0), length, one)
    inside = g.op('And', g.op('Not', g.op('Less', place, start)), g.op('Less', place, end))
    width = g.op('Cast', g.op('Sub', end, start), to_i=FLOAT)
    return g.op('Div', g.op('Cast', inside, to_i=FLOAT), width)


def _number(g, value: int):
    return g.op('Constant', value_t=torch.tensor(value))
