"""Describe ONNX Runtime on a CPU: integer ``Clip`` behind ``QuantizeLinear``, int32 biases, 8-bit outputs.

ONNX Runtime computes a convolution in integers only if its output is quantized, too. Where a ReLU and the next layer's
input quantizer follow, it is. Everywhere else:

- where a max pooling stands in between, the grid of the next layer's input is used before it (the largest value
  and rounding commute, so nothing changes);
- where the network goes on otherwise (a residual addition, a neck), the output is rounded to an 8-bit grid: the one
  that the model was trained with (:mod:`mmgdrq.deploy.simulation`), else one whose range comes from the sample images;
- where the network ends, or an output leaves it, the block is computed as int32 and scaled in float; so it is before a
  norm that is not part of the block, which would enlarge the rounding of the channels that it scales up.

The rounding formula was found by comparing codes on values near ties, with ONNX Runtime 1.32
(``tests/deploy/engines/test_onnxruntime.py``).
"""

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from mmgdrq_runtime.engines import ONNXRUNTIME

from .base import UNCHANGED, BlockCall, Engine, Reader, Requantization
from .block import INT8_MAX, SIGNED_ZERO, Block, Grid, unit_of_bias, written_scale
from .lowering import code, constant, dequantized_weight, float_layer, geometry, weight_codes

INTEGER_KERNELS = ('QLinearConv', 'QGemm', 'QLinearMatMul', 'MatMulInteger', 'MatMulIntegerToFloat', 'ConvInteger')
INT16_MAX = 2**15 - 1
FLOAT_KERNELS = ('Conv', 'FusedConv', 'Gemm', 'MatMul', 'FusedMatMul', 'FusedGemm')


class ONNXRuntime(Engine):
    """ONNX Runtime on a CPU: it rounds biases, and some outputs to 8 bits."""

    name = 'onnxruntime'
    simulates = True
    clips_codes = True
    max_distance = float('inf')  # an output of 8 bits on a tie moves the next block's input by much

    def adapt(self, block: Block) -> Block:
        """The block without the products of filters whose bias int32 could not hold beside them."""
        if not block.is_integer:  # it has a float bias
            return block
        alone = without_products(block.scale, block.offset, refinement_of(block))
        return replace(block, scale=torch.where(alone, 0.0, block.scale))

    def compute(self, block: Block, x: Tensor, output: Requantization, kernel: Optional[str] = None) -> Tensor:
        """The output with a rounded bias, and on its grid where it has one."""
        total = block.multiply(self.encode(block, x, kernel))
        grid = output.grid or output.reader
        if grid is None:
            return total * block.per_filter(block.scale) + block.per_filter(self.offset(block, output))
        return self._on_grid(block, total, grid)

    def _on_grid(self, block: Block, total: Tensor, grid: Grid) -> Tensor:
        """Sums of products as values of a grid, with the bias in integers."""
        refinement = refinement_of(block)
        scale = block.step * written_scale(block.unit, block.step, refinement)
        factor = refinement * (block.scale != 0).double()
        total = total.double() * block.per_filter(factor) + block.per_filter(bias_codes(block).double())
        codes = requantized_codes(total, block.per_filter(scale), grid.scale, grid.limits)
        return codes * torch.tensor(grid.scale)

    def offset(self, block: Block, output: Requantization) -> Tensor:
        """What is added to the output, as the engine adds it, shape ``(O,)``."""
        if not self.changes_output(block, output):
            return block.offset
        return (bias_codes(block).double() * block.unit.double() / refinement_of(block)).float()

    def changes_output(self, block: Block, output: Requantization) -> bool:
        """Whether the bias is rounded to an integer number of units."""
        return block.is_integer and not output.in_float

    def depends_on_processor(self, block: Block, output: Requantization) -> bool:
        """Whether the block may give other sums on processors without VNNI."""
        return saturates(block, output)

    def rounding(self, block: Block, output: Requantization) -> Tensor:
        """Half a unit of the bias, and half a step of the output's grid."""
        if not self.changes_output(block, output):
            return torch.zeros(())
        grid = output.grid or output.reader
        unit = block.per_filter(block.unit.abs() / refinement_of(block))
        return 0.5 * (unit + (grid.scale if grid else 0.0))

    def code_type(self, block: Block) -> torch.dtype:
        """Type of the input codes in the graph."""
        return torch.uint8

    def stored(self, block: Block, codes: Tensor) -> np.ndarray:
        """Input codes as they stand in the graph, where it wants uint8 only."""
        return (codes + _zero_of(block)).to(torch.uint8).numpy()

    def lower(self, g, x, block: Block, output: Requantization):
        """The nodes that compute the block from its float input ``x``; returns the float output."""
        y = _integer_layer(g, x, block) if output.in_float else self._quantized_layer(g, x, block)
        if output.grid is None:
            return y
        parameters = constant(g, torch.tensor(output.grid.scale)), code(g, output.grid.zero)
        return g.op('DequantizeLinear', g.op('QuantizeLinear', y, *parameters), *parameters)

    def _quantized_layer(self, g, x, block: Block):
        refinement = refinement_of(block) if block.is_integer else 1
        weight = dequantized_weight(g, block, refinement, self.packs_weights)
        x = self.lower_input(g, x, block)
        if not block.is_integer:
            return float_layer(g, x, weight, constant(g, block.offset.float()), block)
        bias, unit = bias_codes(block), (block.unit.double() / refinement).float()
        bias = g.op('DequantizeLinear', constant(g, bias), constant(g, unit), axis_i=0)
        return float_layer(g, x, weight, bias, block)

    def lower_input(self, g, x, block: Block):
        """The nodes that bring the input to its grid: quantized, clipped as codes, dequantized."""
        if block.limits is None:
            return x
        step = constant(g, block.step.float())
        x, zero = _codes_in_uint8(g, x, block)
        return g.op('DequantizeLinear', x, step, zero)

    def requantize(self, reader: Reader) -> Mapping[str, Requantization]:
        """Quantize the outputs that the engine would compute in float otherwise."""
        calls: dict[str, list[BlockCall]] = defaultdict(list)
        blocks = {id(call.node): call.block for call in reader.calls}
        for call in reader.calls:
            if call.block.is_integer and not call.is_product:  # there are integer products with float results
                calls[call.block.name].append(call)
        return {name: _settle(group, [_wish(reader, call, blocks) for call in group]) for name, group in calls.items()}

    def count_kernels(self, path: Path) -> tuple[int, int]:
        """Number of convolutions and matrix products that are computed in integers, and in float."""
        import onnx
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.optimized_model_filepath = str(Path(folder, 'optimized.onnx'))
            onnxruntime.InferenceSession(str(path), options, **ONNXRUNTIME)
            kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
        return sum(kind in INTEGER_KERNELS for kind in kinds), sum(kind in FLOAT_KERNELS for kind in kinds)


def refinement_of(block: Block) -> int:
    """Factor on the weight codes of a block, and divisor of their scale; see :func:`refinement`."""
    return refinement(block.lowest, _code_range(block))


def refinement(lowest: int, highest_code: int) -> int:
    """Factor on weight codes from ``lowest`` on, and divisor of their scale, with which they still fit int8.

    The bias is a multiple of input step * weight scale, so a finer scale rounds it less. Processors without VNNI add
    pairs of products in int16, so a pair has to fit, too: where the input codes reach 255, weight codes reach 64.

    Args:
        lowest: lowest weight code.
        highest_code: highest input code as uint8.

    >>> refinement(-3, 15), refinement(-3, 135), refinement(-8, 255)
    (42, 40, 8)
    """
    largest = min(INT8_MAX, INT16_MAX // (2 * highest_code))
    return max(largest // -lowest, 1)


def _code_range(block: Block) -> int:
    return block.limits[1] + _zero_of(block)


def saturates(block: Block, output: Requantization) -> bool:
    """Whether a processor without VNNI may get sums of an integer layer wrong: a pair of products passes int16.

    Which products are added first depends on the kernel, so any two weights of a filter count as a pair.
    """
    if not block.is_integer:
        return False
    factor = 1 if output.in_float else refinement_of(block)
    codes = (block.weight.flatten(1) * factor).to(torch.int64).numpy()
    codes = np.sort(np.pad(codes, ((0, 0), (2, 2))), axis=1)  # a pair with nothing is a product alone
    highest = _code_range(block) * codes[:, -2:].sum(1)
    lowest = _code_range(block) * codes[:, :2].sum(1)
    return bool((highest > INT16_MAX).any() or (lowest < -INT16_MAX - 1).any())


def without_products(scale: Tensor, offset: Tensor, refinement: int) -> Tensor:
    """Filters of which the engine gets the bias alone: no int32 holds it in units of the scale, shape ``(O,)``."""
    return (scale == 0) | (offset.abs().double() * refinement > 2.0**30 * scale.abs().double())


def bias_codes(block: Block) -> Tensor:
    """The bias in units of input step * refined weight scale: int32, shape ``(O,)``."""
    limit = float(2**31 - 1)
    codes = (block.offset.double() / block.unit.double() * refinement_of(block)).round()
    return codes.clamp(-limit, limit).to(torch.int32)


def bias_change(unit: Tensor, scale: Tensor, offset: Tensor, refinement: int) -> Tensor:
    """What rounding adds to a bias, shape ``(O,)``.

    Args:
        unit: value of one unit of input code * weight code before the BN, shape ``(O,)``.
        scale, offset: of the BN, shape ``(O,)``.
        refinement: the bias is a multiple of ``scale * unit / refinement``; where that is 0, hardly rounded at all.
    """
    fine = scale.double() * unit.double()
    alone = without_products(fine, offset, refinement)
    fine = torch.where(alone, unit_of_bias(offset.double()), fine) / refinement
    return ((offset / fine).round() * fine - offset).float()


def requantized_codes(total: Tensor, scale: Tensor, grid_scale: float, limits: tuple[int, int]) -> Tensor:
    """Codes (without their zero) of an output on an 8-bit grid: sum and bias are rescaled at once.

    Args:
        total: sum of products plus bias, integers as float64, shape ``(N, O, ...)``.
        scale: of a unit of ``total``: input step times weight scale in float32, broadcasts against it.
        grid_scale: of the grid.
        limits: lowest and highest code.
    """
    factor = scale / torch.tensor(grid_scale)
    return (total.float() * factor).round_().clamp_(*limits)


def _zero_of(block: Block) -> int:
    return SIGNED_ZERO if block.limits[0] < 0 else 0


def _codes_in_uint8(g, x, block: Block):
    """Input codes, and the code of 0."""
    shift = _zero_of(block)
    low, high = block.limits[0] + shift, block.limits[1] + shift
    zero = code(g, shift)
    x = g.op('QuantizeLinear', x, constant(g, block.step.float()), zero)
    if (low, high) != (0, 255):
        x = g.op('Clip', x, code(g, low), code(g, high))
    return x, zero


def _integer_layer(g, x, block: Block):
    """A layer from uint8 and int8 to int32, then one scale and one bias per filter in float."""
    x, zero = _codes_in_uint8(g, x, block)
    weight = weight_codes(g, block, 1, packed=True)
    if block.geometry is None:
        y = g.op('MatMulInteger', x, g.op('Transpose', weight, perm_i=[1, 0]), zero)
    else:
        y = g.op('ConvInteger', x, weight, zero, **geometry(block))
    shape = (-1,) if block.geometry is None else (1, -1, 1, 1)
    y = g.op('Mul', g.op('Cast', y, to_i=1), constant(g, block.unit.float().reshape(shape)))
    return g.op('Add', y, constant(g, block.offset.float().reshape(shape)))


@dataclass(frozen=True)
class _Wish:
    """What would suit the output of one call of a block.

    Attributes:
        in_float: to stay as it is.
        next: whether the reader's quantizer follows at once, so that the engine rounds by itself.
        grid: of the only reader; None: there are several, or something else in between.
    """

    in_float: bool
    next: bool = False
    grid: Optional[Grid] = None


def _wish(reader: Reader, call: BlockCall, blocks: Mapping[int, Block]) -> _Wish:
    if reader.leaves(call.node) or reader.is_normalized_next(call.node):
        return _Wish(in_float=True)
    return _Wish(False, reader.is_quantized_next(call.node), _grid_of_reader(reader, call, blocks))


def _grid_of_reader(reader: Reader, call: BlockCall, blocks: Mapping[int, Block]) -> Optional[Grid]:
    """The grid of the only layer that reads a pooled output."""
    block = blocks.get(id(reader.only_layer_behind(call.node)))
    if block is None or not block.is_integer:
        return None
    return Grid(block.step.item(), _zero_of(block))


def _settle(calls: Sequence[BlockCall], wishes: Sequence[_Wish]) -> Requantization:
    """The outputs of a block that is called several times may go to different layers, but are computed alike."""
    if any(wish.in_float for wish in wishes):
        return Requantization(in_float=True)
    grids = {wish.grid for wish in wishes}
    only = grids.pop() if len(grids) == 1 else None
    if all(wish.next for wish in wishes):
        return replace(UNCHANGED, reader=only)
    call = calls[0]
    return Requantization(grid=only or call.trained or _grid_of_range(*call.range), own=only is None)


def _grid_of_range(lowest: float, highest: float) -> Grid:
    scale = max((highest - lowest) / 255, 1e-12)
    return Grid(scale, min(max(round(-lowest / scale), 0), 255))
