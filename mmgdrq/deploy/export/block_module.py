"""A block in the place of its folded layer, for export.

It computes in torch what its ONNX nodes compute, rounded bias and quantized result included: a model of these modules
is the simulation of what the engine runs.
"""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ..engines.block import Block, Grid, refinement_of
from ..engines.nodes import block_nodes
from ..engines.rounding import onnxruntime_result, written_scale


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


class _Exported(Function):
    @staticmethod
    def forward(ctx, x, module):
        total = module.block.multiply(module.block.encode(x, module.alone))
        grid = module.result or module.reader
        return module.block.rescale(total, module.offset()) if grid is None else module.on_grid(total, grid)

    @staticmethod
    def symbolic(g, x, module):
        module.exported.append(module)
        return block_nodes(g, x, module)
