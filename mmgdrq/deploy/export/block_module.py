"""Put a block in the place of its folded layer, for export.

It computes in torch what its ONNX nodes compute, rounded bias and requantized output included: a model of these modules
is the simulation of what the engine runs.
"""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ..engines.base import UNCHANGED, Engine
from ..engines.block import Block, Grid


class BlockModule(nn.Module):
    """A block in the place of its folded layer, for export.

    Args:
        block: what it computes.
        engine: that computes it.
        exported: receives the module each time that it becomes ONNX nodes.
        trained: the grid that the model was trained with, see :mod:`mmgdrq.deploy.simulation`.

    Attributes:
        range: lowest and highest output so far.
        rank: dimensions of the last input.
        output: what happens to its output; the writer sets it.
        kernel: what computes the input quantizer, see :meth:`~mmgdrq.deploy.engines.base.Engine.quantizer_kernels`.
    """

    def __init__(self, block: Block, engine: Engine, exported: list, trained: Optional[Grid] = None) -> None:
        super().__init__()
        self.block, self.engine, self.exported, self.trained = block, engine, exported, trained
        self.range = (0.0, 0.0)
        self.rank = 0
        self.output = UNCHANGED
        self.kernel: Optional[str] = None

    def is_product(self) -> bool:
        """Whether the block became a MatMul: a linear layer on inputs of more than two dimensions."""
        return self.block.geometry is None and self.rank != 2

    def changes_output(self) -> bool:
        """Whether the engine computes another output than the quantized model."""
        return self.engine.changes_output(self.block, self.output)

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
        return module.engine.compute(module.block, x, module.output, module.kernel)

    @staticmethod
    def symbolic(g, x, module):
        module.exported.append(module)
        return module.engine.lower(g, x, module.block, module.output)
