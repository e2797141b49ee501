"""Describe TensorRT: symmetric int8 for every input, and weights as int8 constants, as it asks for.

An unsigned 8-bit input loses one bit by that. It does not run here, so ONNX Runtime runs its graphs node by node.
"""

from dataclasses import replace

import torch

from .base import Engine
from .block import INT8_MAX, Block


class TensorRT(Engine):
    """TensorRT, whose graphs are checked on a CPU, but not run as it would run them."""

    name = 'tensorrt'
    runs_here = False
    packs_weights = False

    def adapt(self, block: Block) -> Block:
        """The block with input codes of at most 127: an 8-bit unsigned grid gets half as many steps."""
        if block.limits is None or block.limits[1] <= INT8_MAX:
            return block
        coarser = block.limits[1] / INT8_MAX
        return replace(block, step=block.step * coarser, scale=block.scale * coarser, limits=(0, INT8_MAX))

    def code_type(self, block: Block) -> torch.dtype:
        """Type of the input codes in the graph."""
        return torch.int8
