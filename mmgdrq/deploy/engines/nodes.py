"""The ONNX nodes of a block.

Profiles put the same block into the form that an engine turns into integer kernels:

- ``'openvino'``: a float ``Clip`` before ``QuantizeLinear``, a float bias.
- ``'onnxruntime'``: ``QuantizeLinear``, then an integer ``Clip``, an int32 bias. A result that would make the
  engine compute in float is quantized to 8 bits, or computed as int32 and scaled, see :mod:`.results`.
- ``'tensorrt'``: as ``'openvino'``, but every input is symmetric int8 and weights are int8 constants, as TensorRT
  asks for. An unsigned 8-bit input loses one bit by that.

``g`` is the graph that ``torch.onnx.export`` builds, ``module`` a
:class:`~mmgdrq.deploy.export.block_module.BlockModule`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...quant import pack, unpack
from .block import SIGNED_ZERO, Block
from .rounding import written_scale


def block_nodes(g, x, module: nn.Module):
    """The nodes that compute the block from its float input ``x``; returns the float result."""
    y = _integer_nodes(g, x, module) if module.ends else _float_nodes(g, x, module)
    if module.result is None:
        return y
    grid = module.result
    parameters = _constant(g, torch.tensor(grid.scale)), _code(g, grid.zero)
    return g.op('DequantizeLinear', g.op('QuantizeLinear', y, *parameters), *parameters)


def _float_nodes(g, x, module: nn.Module):
    """Quantize and dequantize around a float layer: the form from which engines make integer kernels."""
    block, rank = module.block, x.type().dim()
    weight = _weight(g, module)
    x = _input(g, x, block)
    bias = _bias(g, module)
    if block.geometry is not None:
        return g.op('Conv', x, weight, bias, **_geometry(block))
    if rank == 2:
        return g.op('Gemm', x, weight, bias, transB_i=1)
    return g.op('Add', g.op('MatMul', x, g.op('Transpose', weight, perm_i=[1, 0])), bias)


def _integer_nodes(g, x, module: nn.Module):
    """A layer from uint8 and int8 to int32, then one scale and one bias a filter in float."""
    block = module.block
    x, zero = _codes_in_uint8(g, x, block)
    weight = _weight_codes(g, module)
    if block.geometry is None:
        y = g.op('MatMulInteger', x, g.op('Transpose', weight, perm_i=[1, 0]), zero)
    else:
        y = g.op('ConvInteger', x, weight, zero, **_geometry(block))
    shape = (-1,) if block.geometry is None else (1, -1, 1, 1)
    y = g.op('Mul', g.op('Cast', y, to_i=1), _constant(g, block.unit.float().reshape(shape)))
    return g.op('Add', y, _constant(g, block.offset.float().reshape(shape)))


def _geometry(block: Block) -> dict[str, Any]:
    stride, padding, dilation, groups = block.geometry
    return dict(
        strides_i=stride,
        pads_i=[*padding, *padding],
        dilations_i=dilation,
        group_i=groups,
        kernel_shape_i=block.weight.shape[2:],
    )


def _input(g, x, block: Block):
    """The input on its grid: for OpenVINO clipped in float, for ONNX Runtime, which wants uint8 only, as codes."""
    if block.limits is None:
        return x
    step = _constant(g, block.step.float())
    if block.profile == 'onnxruntime':
        x, zero = _codes_in_uint8(g, x, block)
        return g.op('DequantizeLinear', x, step, zero)
    low, high = block.limits
    dtype = torch.int8 if low < 0 or block.profile == 'tensorrt' else torch.uint8
    zero, info = _code(g, 0, dtype), torch.iinfo(dtype)
    if (low, high) != (info.min, info.max):
        x = g.op('Clip', x, _constant(g, low * block.step.float()), _constant(g, high * block.step.float()))
    return g.op('DequantizeLinear', g.op('QuantizeLinear', x, step, zero), step, zero)


def _codes_in_uint8(g, x, block: Block):
    """Input codes, and the code of 0."""
    low, high = block.limits
    shift = SIGNED_ZERO if low < 0 else 0
    zero = _code(g, shift)
    x = g.op('QuantizeLinear', x, _constant(g, block.step.float()), zero)
    if (low + shift, high + shift) != (0, 255):
        x = g.op('Clip', x, _code(g, low + shift), _code(g, high + shift))
    return x, zero


def _code(g, value: int, dtype: torch.dtype = torch.uint8):
    return _constant(g, torch.tensor(value, dtype=dtype))


def _weight(g, module: nn.Module):
    block = module.block
    step = 1.0 if block.step is None else block.step
    if block.bits > 8:
        return _constant(g, _codes(block) * (block.scale / step).reshape(-1, *[1] * (block.weight.dim() - 1)))
    scale = _constant(g, written_scale(block.unit, step, module.refinement))
    zeros = _constant(g, torch.zeros(len(block.scale), dtype=torch.int8))
    return g.op('DequantizeLinear', _weight_codes(g, module), scale, zeros, axis_i=0)


def _codes(block: Block) -> Tensor:
    return torch.where(block.scale.reshape(-1, *[1] * (block.weight.dim() - 1)) == 0, 0.0, block.weight)


def _weight_codes(g, module: nn.Module):
    """Codes at their real bit-width; a table turns every byte into its codes when the engine loads the graph."""
    block, codes, refinement = module.block, _codes(module.block), module.refinement
    width = 2 if block.bits == 2 else 4 if block.bits <= 4 else 8
    on_grid = block.stride == 1 or bool((block.scale != 0).all())  # a filter without scale has codes of 0
    if width == 8 or block.profile == 'tensorrt' or not on_grid:
        return _constant(g, (codes * refinement).to(torch.int8))
    lowest = -(2**width - 1) if block.stride == 2 else -(2 ** (width - 1))
    packed = pack(codes, width, lowest, block.stride)
    table = _byte_table(width, lowest, block.stride) * refinement
    flat = g.op('Gather', _constant(g, table), g.op('Cast', _constant(g, packed), to_i=6), axis_i=0)
    flat = g.op('Reshape', flat, _constant(g, torch.tensor([-1])))
    if len(packed) * (8 // width) != codes.numel():
        ends = [_constant(g, torch.tensor([value])) for value in (0, codes.numel(), 0)]
        flat = g.op('Slice', flat, *ends)
    return g.op('Reshape', flat, _constant(g, torch.tensor(codes.shape)))


def _byte_table(width: int, lowest: int, stride: int) -> Tensor:
    """Codes in every possible byte: int8, shape ``(256, 8 // width)``."""
    per_byte = 8 // width
    every = torch.arange(256, dtype=torch.uint8)
    return unpack(every, width, lowest, (256, per_byte), stride).to(torch.int8)


def _bias(g, module: nn.Module):
    if not module.has_integer_bias():
        return _constant(g, module.block.offset.float())
    unit = (module.block.unit.double() / module.refinement).float()
    return g.op('DequantizeLinear', _constant(g, module.bias_codes()), _constant(g, unit), axis_i=0)


def _constant(g, value: Tensor):
    return g.op('Constant', value_t=value.detach().cpu().contiguous())
