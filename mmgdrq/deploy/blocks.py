"""A quantized block as ONNX nodes: input codes, integer weights, one scale and one bias a filter.

Two profiles put the same block into the form that an engine turns into integer kernels:

- ``'openvino'``: a float ``Clip`` before ``QuantizeLinear``, a float bias.
- ``'onnxruntime'``: ``QuantizeLinear``, then an integer ``Clip``, an int32 bias; :mod:`.outputs` quantizes
  results that it would otherwise compute in float.
"""

from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from ..errors import ExportError
from ..quant import pack, quantize, unpack
from .layers import FoldedLinear, rescale

PROFILES = ('openvino', 'onnxruntime')
BIAS_REFINEMENT = {2: 63, 3: 31, 4: 15, 5: 7, 6: 3, 7: 1, 8: 1}
"""Weight bits -> factor on the weight codes (and divisor of their scale) in the profile ``'onnxruntime'``. Its bias is
an integer in units of input step * weight scale, so a finer scale rounds the bias less; the codes still fit int8."""


@dataclass(frozen=True, eq=False)
class Block:
    """One folded layer with its BN.

    Attributes:
        name: of the layer.
        weight: integer codes as float32, shape ``(O, ...)``.
        bits, lowest: how the codes are stored; 32 bits: a float weight.
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
    scale: Tensor
    offset: Tensor
    step: Optional[Tensor]
    limits: Optional[tuple[int, int]]
    geometry: Optional[tuple[Any, ...]]
    profile: str

    def compute(self, x: Tensor) -> Tensor:
        """The block in torch."""
        codes = x if self.limits is None else quantize(x, self.step, self.limits)
        if self.geometry is None:
            return rescale(F.linear(codes, self.weight), self.scale, self.offset, codes.dim() - 1)
        y = F.conv2d(codes, self.weight, None, *self.geometry)
        return rescale(y, self.scale, self.offset, y.dim() - 3)


class BlockModule(nn.Module):
    """A block in the place of its folded layer, for export.

    Args:
        block: what it computes.
        exported: receives the module each time that it becomes ONNX nodes.

    Attributes:
        range: lowest and highest result so far.
        rank: dimensions of the last input.
    """

    def __init__(self, block: Block, exported: list) -> None:
        super().__init__()
        self.block, self.exported = block, exported
        self.range = (0.0, 0.0)
        self.rank = 0

    def is_product(self) -> bool:
        """Whether the block became a MatMul: a linear layer on inputs of more than two dimensions."""
        return self.block.geometry is None and self.rank != 2

    def forward(self, x: Tensor) -> Tensor:
        self.rank = x.dim()
        y = _Exported.apply(x, self)
        if y.numel() and not torch.jit.is_tracing():
            lowest, highest = y.aminmax()
            self.range = (min(self.range[0], lowest.item()), max(self.range[1], highest.item()))
        return y


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
    return Block(
        name=name,
        weight=layer.weight.detach(),
        bits=entry['weight_bits'],
        lowest=entry['weight_lowest'],
        scale=layer.scale,
        offset=layer.offset,
        step=layer.input_codes.step if entry['input'] else None,
        limits=tuple(entry['input']) if entry['input'] else None,
        geometry=geometry,
        profile=profile,
    )


class _Exported(Function):
    @staticmethod
    def forward(ctx, x, module):
        return module.block.compute(x)

    @staticmethod
    def symbolic(g, x, module):
        block = module.block
        module.exported.append(module)
        rank = x.type().dim()
        refinement = _refinement(block)
        weight = _weight(g, block, refinement)
        x = _input(g, x, block)
        bias = _bias(g, block, refinement)
        if block.geometry is None:
            return _linear(g, x, weight, bias, rank)
        stride, padding, dilation, groups = block.geometry
        return g.op(
            'Conv',
            x,
            weight,
            bias,
            strides_i=stride,
            pads_i=[*padding, *padding],
            dilations_i=dilation,
            group_i=groups,
            kernel_shape_i=block.weight.shape[2:],
        )


def _linear(g, x, weight, bias, rank: int):
    if rank == 2:
        return g.op('Gemm', x, weight, bias, transB_i=1)
    return g.op('Add', g.op('MatMul', x, g.op('Transpose', weight, perm_i=[1, 0])), bias)


def _input(g, x, block: Block):
    if block.limits is None:
        return x
    low, high = block.limits
    dtype = torch.int8 if low < 0 else torch.uint8
    step, zero = _constant(g, block.step.float()), _constant(g, torch.zeros((), dtype=dtype))
    info = torch.iinfo(dtype)
    clipped = (low, high) != (info.min, info.max)
    if clipped and block.profile == 'openvino':
        x = g.op('Clip', x, _constant(g, low * block.step.float()), _constant(g, high * block.step.float()))
    x = g.op('QuantizeLinear', x, step, zero)
    if clipped and block.profile == 'onnxruntime':
        x = g.op('Clip', x, _constant(g, torch.tensor(low, dtype=dtype)), _constant(g, torch.tensor(high, dtype=dtype)))
    return g.op('DequantizeLinear', x, step, zero)


def _refinement(block: Block) -> int:
    refined = block.profile == 'onnxruntime' and block.limits is not None and block.bits <= 8
    return BIAS_REFINEMENT[block.bits] if refined else 1


def _units(block: Block) -> Tensor:
    """What one unit of ``input code * weight code`` is worth, per filter; 1 where a filter is all zero."""
    return torch.where(block.scale == 0, torch.ones_like(block.scale), block.scale)


def _weight(g, block: Block, refinement: int):
    codes = torch.where(block.scale.reshape(-1, *[1] * (block.weight.dim() - 1)) == 0, 0.0, block.weight)
    step = 1.0 if block.step is None else block.step
    if block.bits > 8:
        shape = (-1, *[1] * (block.weight.dim() - 1))
        return _constant(g, codes * (block.scale / step).reshape(shape))
    integers = _packed(g, codes, block, refinement) if block.bits < 8 else _constant(g, codes.to(torch.int8))
    scale = _constant(g, (_units(block) / step / refinement).float())
    return g.op(
        'DequantizeLinear', integers, scale, _constant(g, torch.zeros(len(block.scale), dtype=torch.int8)), axis_i=0
    )


def _packed(g, codes: Tensor, block: Block, refinement: int):
    """Codes at their real bit-width; a table turns every byte into its codes when the engine loads the graph."""
    width = 2 if block.bits == 2 else 4 if block.bits <= 4 else 8
    if width == 8:
        return _constant(g, (codes * refinement).to(torch.int8))
    per_byte = 8 // width
    packed = pack(codes, width, -(2 ** (width - 1)))
    table = _byte_table(width) * refinement
    flat = g.op('Gather', _constant(g, table), g.op('Cast', _constant(g, packed), to_i=6), axis_i=0)
    flat = g.op('Reshape', flat, _constant(g, torch.tensor([-1])))
    if len(packed) * per_byte != codes.numel():
        ends = [_constant(g, torch.tensor([value])) for value in (0, codes.numel(), 0)]
        flat = g.op('Slice', flat, *ends)
    return g.op('Reshape', flat, _constant(g, torch.tensor(codes.shape)))


def _byte_table(width: int) -> Tensor:
    """Codes in every possible byte: int8, shape ``(256, 8 // width)``."""
    per_byte = 8 // width
    every = torch.arange(256, dtype=torch.uint8)
    return unpack(every, width, -(2 ** (width - 1)), (256, per_byte)).to(torch.int8)


def _bias(g, block: Block, refinement: int):
    if block.profile == 'openvino' or block.limits is None or block.bits > 8:
        return _constant(g, block.offset.float())
    unit = _units(block).double() / refinement
    codes = (block.offset.double() / unit).round()
    limit = float(2**31 - 1)
    codes = codes.clamp(-limit, limit).to(torch.int32)
    return g.op('DequantizeLinear', _constant(g, codes), _constant(g, unit.float()), axis_i=0)


def _constant(g, value: Tensor):
    return g.op('Constant', value_t=value.detach().cpu().contiguous())
