"""A quantized block as ONNX nodes: input codes, integer weights, one scale and one bias a filter.

Profiles put the same block into the form that an engine turns into integer kernels:

- ``'openvino'``: a float ``Clip`` before ``QuantizeLinear``, a float bias.
- ``'onnxruntime'``: ``QuantizeLinear``, then an integer ``Clip``, an int32 bias. A result that would make the
  engine compute in float is quantized to 8 bits, or computed as int32 and scaled, see :mod:`.results`.
- ``'tensorrt'``: as ``'openvino'``, but every input is symmetric int8 and weights are int8 constants, as TensorRT
  asks for. An unsigned 8-bit input loses one bit by that.

A :class:`BlockModule` computes in torch what its nodes compute, rounded bias and quantized result included: a model
of them is the simulation of what the engine runs.
"""

from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from ..errors import ExportError
from ..quant import pack, quantize, unpack
from .layers import FoldedLinear
from .rounding import onnxruntime_result, openvino_codes, unit_of_bias, without_products, written_scale

PROFILES = ('openvino', 'onnxruntime', 'tensorrt')
INT8_MAX = 127
SIGNED_ZERO = 128
"""Code of 0 where signed values are held in uint8."""


@dataclass(frozen=True)
class Grid:
    """The 8-bit grid of a result: ``scale * (code - zero)``, codes of uint8."""

    scale: float
    zero: int = 0

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest ``code - zero``."""
        return -self.zero, 255 - self.zero


@dataclass(frozen=True, eq=False)
class Block:
    """One folded layer with its BN.

    Attributes:
        name: of the layer.
        weight: integer codes as float32, shape ``(O, ...)``.
        bits, lowest, stride: how the integers are stored, see :func:`mmgdrq.quant.pack`; 32 bits: a float weight.
        scale, offset: shape ``(O,)``; the result is ``scale * layer(input codes) + offset``.
        step: of the input; None: a float input.
        limits: of the input codes.
        geometry: stride, padding, dilation and groups of a convolution; None: linear.
        profile: one of :data:`PROFILES`.
    """

    name: str
    weight: Tensor
    bits: int
    lowest: int
    stride: int
    scale: Tensor
    offset: Tensor
    step: Optional[Tensor]
    limits: Optional[tuple[int, int]]
    geometry: Optional[tuple[Any, ...]]
    profile: str

    @property
    def is_integer(self) -> bool:
        """Whether both the input and the weight are codes of at most 8 bits."""
        return self.limits is not None and self.bits <= 8

    @property
    def unit(self) -> Tensor:
        """What one unit of ``input code * weight code`` is worth, shape ``(O,)``; of bias alone in a filter without."""
        return torch.where(self.scale == 0, unit_of_bias(self.offset), self.scale)

    def encode(self, x: Tensor, alone: bool = False) -> Tensor:
        """Input codes, as the engine rounds; ``alone`` as in :func:`~mmgdrq.deploy.rounding.openvino_codes`."""
        if self.limits is None:
            return x
        if self.profile == 'openvino':
            return openvino_codes(x, self.step, self.limits, alone)
        return quantize(x, self.step, self.limits)

    def multiply(self, codes: Tensor) -> Tensor:
        """The layer without scale and offset."""
        if self.geometry is None:
            return F.linear(codes, self.weight)
        return F.conv2d(codes, self.weight, None, *self.geometry)

    def per_filter(self, values: Tensor) -> Tensor:
        """Values of shape ``(O,)`` so that they broadcast against a result."""
        return values if self.geometry is None else values.reshape(-1, 1, 1)

    def rescale(self, total: Tensor, offset: Tensor) -> Tensor:
        """``scale * total + offset``, with the scale that the engine finds in the graph."""
        scale = self.scale
        if self.profile == 'openvino' and self.is_integer:
            scale = torch.where(scale == 0, 0.0, self.step * written_scale(self.unit, self.step))
        return total * self.per_filter(scale) + self.per_filter(offset)


class BlockModule(nn.Module):
    """A block in the place of its folded layer, for export.

    Args:
        block: what it computes.
        exported: receives the module each time that it becomes ONNX nodes.

    Attributes:
        range: lowest and highest result so far.
        rank: dimensions of the last input.
        result: grid that the result is rounded to; None: the result stays float.
        reader: grid of the only layer that reads the result, at most behind a ReLU; the engine rounds to it at once.
        rounds: whether ``result`` is a grid of its own, and not that of the next layer's input.
        trained: the grid that the model was trained with, see :mod:`.simulation`.
        alone: whether the engine computes the input quantizer alone, see :mod:`.rounding`.
        ends: whether the block is computed as int32 and then scaled and shifted in float, with a float bias.
    """

    def __init__(self, block: Block, exported: list) -> None:
        super().__init__()
        self.block, self.exported = block, exported
        self.range = (0.0, 0.0)
        self.rank = 0
        self.result: Optional[Grid] = None
        self.reader: Optional[Grid] = None
        self.rounds = self.ends = self.alone = False
        self.trained: Optional[Grid] = None

    def is_product(self) -> bool:
        """Whether the block became a MatMul: a linear layer on inputs of more than two dimensions."""
        return self.block.geometry is None and self.rank != 2

    def has_integer_bias(self) -> bool:
        """Whether the bias is rounded to an integer number of units."""
        return self.block.profile == 'onnxruntime' and self.block.is_integer and not self.ends

    @property
    def refinement(self) -> int:
        """Factor on the weight codes, and divisor of their scale, with an integer bias.

        Its units are input step * weight scale, so a finer scale rounds the bias less; the codes still fit int8.
        """
        return refinement_of(self.block.lowest) if self.has_integer_bias() else 1

    def bias_codes(self) -> Tensor:
        """The bias in units of input step * refined weight scale: int32, shape ``(O,)``."""
        limit = float(2**31 - 1)
        codes = (self.block.offset.double() / self.block.unit.double() * self.refinement).round()
        return codes.clamp(-limit, limit).to(torch.int32)

    def offset(self) -> Tensor:
        """What is added to the result, as the engine adds it."""
        if not self.has_integer_bias():
            return self.block.offset
        return (self.bias_codes().double() * self.block.unit.double() / self.refinement).float()

    def on_grid(self, total: Tensor, grid: Grid) -> Tensor:
        """Sums of products as values of a grid, with the bias in integers."""
        block = self.block
        scale = block.step * written_scale(block.unit, block.step, self.refinement)
        factor = self.refinement * (block.scale != 0).double()
        total = total.double() * block.per_filter(factor) + block.per_filter(self.bias_codes().double())
        codes = onnxruntime_result(total, block.per_filter(scale), grid.scale, grid.limits)
        return codes * torch.tensor(grid.scale)

    def forward(self, x: Tensor) -> Tensor:
        self.rank = x.dim()
        y = _Exported.apply(x, self)
        if y.numel() and not torch.jit.is_tracing():
            lowest, highest = y.aminmax()
            self.range = (min(self.range[0], lowest.item()), max(self.range[1], highest.item()))
        return y


def refinement_of(lowest: int) -> int:
    """Largest factor by which weight codes from ``lowest`` on still fit int8."""
    return max(INT8_MAX // -lowest, 1)


def block_of(name: str, layer: nn.Module, entry: dict[str, Any], profile: str) -> Block:
    """The block of a layer of :func:`~mmgdrq.deploy.merge.merge_norms`.

    Args:
        name: of the layer.
        layer: a folded layer that carries its BN.
        entry: its manifest entry.
        profile: one of :data:`PROFILES`.

    Raises:
        ExportError: a convolution that does not pad with a number of zeros.
    """
    linear = isinstance(layer, FoldedLinear)
    if not linear and (layer.padding_mode != 'zeros' or isinstance(layer.padding, str)):
        raise ExportError(
            f'export: {name} has padding={layer.padding!r} and padding_mode={layer.padding_mode!r}; expected a number '
            'of zeros on each side. Keep it in float with a rule, dict(pattern=..., skip=True)'
        )
    geometry = None if linear else (layer.stride, layer.padding, layer.dilation, layer.groups)
    block = Block(
        name=name,
        weight=layer.weight.detach(),
        bits=entry['weight_bits'],
        lowest=entry['weight_lowest'],
        stride=entry['weight_stride'],
        scale=_scale_of(layer, entry, profile),
        offset=layer.offset,
        step=layer.input_codes.step if entry['input'] else None,
        limits=tuple(entry['input']) if entry['input'] else None,
        geometry=geometry,
        profile=profile,
    )
    return _in_int8(block) if profile == 'tensorrt' else block


def _scale_of(layer: nn.Module, entry: dict[str, Any], profile: str) -> Tensor:
    if profile != 'onnxruntime':
        return layer.scale
    alone = without_products(layer.scale, layer.offset, refinement_of(entry['weight_lowest']))
    return torch.where(alone, 0.0, layer.scale)


def _in_int8(block: Block) -> Block:
    """The block with input codes of at most 127: an 8-bit unsigned grid gets half as many steps."""
    if block.limits is None or block.limits[1] <= INT8_MAX:
        return block
    coarser = block.limits[1] / INT8_MAX
    return replace(block, step=block.step * coarser, scale=block.scale * coarser, limits=(0, INT8_MAX))


class _Exported(Function):
    @staticmethod
    def forward(ctx, x, module):
        total = module.block.multiply(module.block.encode(x, module.alone))
        grid = module.result or module.reader
        return module.block.rescale(total, module.offset()) if grid is None else module.on_grid(total, grid)

    @staticmethod
    def symbolic(g, x, module):
        module.exported.append(module)
        y = _integer_nodes(g, x, module) if module.ends else _float_nodes(g, x, module)
        if module.result is None:
            return y
        grid = module.result
        parameters = _constant(g, torch.tensor(grid.scale)), _code(g, grid.zero)
        return g.op('DequantizeLinear', g.op('QuantizeLinear', y, *parameters), *parameters)


def _float_nodes(g, x, module: BlockModule):
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


def _integer_nodes(g, x, module: BlockModule):
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


def _weight(g, module: BlockModule):
    block = module.block
    step = 1.0 if block.step is None else block.step
    if block.bits > 8:
        return _constant(g, _codes(block) * (block.scale / step).reshape(-1, *[1] * (block.weight.dim() - 1)))
    scale = _constant(g, written_scale(block.unit, step, module.refinement))
    zeros = _constant(g, torch.zeros(len(block.scale), dtype=torch.int8))
    return g.op('DequantizeLinear', _weight_codes(g, module), scale, zeros, axis_i=0)


def _codes(block: Block) -> Tensor:
    return torch.where(block.scale.reshape(-1, *[1] * (block.weight.dim() - 1)) == 0, 0.0, block.weight)


def _weight_codes(g, module: BlockModule):
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


def _bias(g, module: BlockModule):
    if not module.has_integer_bias():
        return _constant(g, module.block.offset.float())
    unit = (module.block.unit.double() / module.refinement).float()
    return g.op('DequantizeLinear', _constant(g, module.bias_codes()), _constant(g, unit), axis_i=0)


def _constant(g, value: Tensor):
    return g.op('Constant', value_t=value.detach().cpu().contiguous())
