"""Write what the engines' graphs have in common as ONNX nodes; ``g`` is the graph that ``torch.onnx.export`` builds."""

from typing import Any

import torch
from torch import Tensor

from ...quant import pack, unpack
from .block import Block, written_scale


def constant(g, value: Tensor):
    """A constant node."""
    return g.op('Constant', value_t=value.detach().cpu().contiguous())


def code(g, value: int, dtype: torch.dtype = torch.uint8):
    """A constant code, a scalar."""
    return constant(g, torch.tensor(value, dtype=dtype))


def geometry(block: Block) -> dict[str, Any]:
    """The attributes of a convolution node."""
    stride, padding, dilation, groups = block.geometry
    return dict(
        strides_i=stride,
        pads_i=[*padding, *padding],
        dilations_i=dilation,
        group_i=groups,
        kernel_shape_i=block.weight.shape[2:],
    )


def float_layer(g, x, weight, bias, block: Block):
    """The layer on float values; quantizers around it are the form from which engines make integer kernels."""
    if block.geometry is not None:
        return g.op('Conv', x, weight, bias, **geometry(block))
    if x.type().dim() == 2:
        return g.op('Gemm', x, weight, bias, transB_i=1)
    return g.op('Add', g.op('MatMul', x, g.op('Transpose', weight, perm_i=[1, 0])), bias)


def dequantized_weight(g, block: Block, refinement: int, packed: bool):
    """The weight as float values: from its codes times ``refinement``, or as it is where it has no codes."""
    step = torch.ones(()) if block.step is None else block.step
    if block.bits > 8:
        return constant(g, _codes(block) * (block.scale / step).reshape(-1, *[1] * (block.weight.dim() - 1)))
    scale = constant(g, written_scale(block.unit, step, refinement))
    zeros = constant(g, torch.zeros(len(block.scale), dtype=torch.int8))
    return g.op('DequantizeLinear', weight_codes(g, block, refinement, packed), scale, zeros, axis_i=0)


def weight_codes(g, block: Block, refinement: int, packed: bool):
    """Codes times ``refinement`` as int8.

    Packed, they are stored at their real bit-width, and a table turns every byte into its codes when the engine
    loads the graph.
    """
    codes = _codes(block)
    width = 2 if block.bits == 2 else 4 if block.bits <= 4 else 8
    on_grid = block.stride == 1 or bool((block.scale != 0).all())  # a filter without scale has codes of 0
    if width == 8 or not packed or not on_grid:
        return constant(g, (codes * refinement).to(torch.int8))
    lowest = -(2**width - 1) if block.stride == 2 else -(2 ** (width - 1))
    data = pack(codes, width, lowest, block.stride)
    table = _byte_table(width, lowest, block.stride) * refinement
    flat = g.op('Gather', constant(g, table), g.op('Cast', constant(g, data), to_i=6), axis_i=0)
    flat = g.op('Reshape', flat, constant(g, torch.tensor([-1])))
    if len(data) * (8 // width) != codes.numel():
        ends = [constant(g, torch.tensor([value])) for value in (0, codes.numel(), 0)]
        flat = g.op('Slice', flat, *ends)
    return g.op('Reshape', flat, constant(g, torch.tensor(codes.shape)))


def _codes(block: Block) -> Tensor:
    return torch.where(block.scale.reshape(-1, *[1] * (block.weight.dim() - 1)) == 0, 0.0, block.weight)


def _byte_table(width: int, lowest: int, stride: int) -> Tensor:
    """Codes in every possible byte: int8, shape ``(256, 8 // width)``."""
    per_byte = 8 // width
    every = torch.arange(256, dtype=torch.uint8)
    return unpack(every, width, lowest, (256, per_byte), stride).to(torch.int8)
