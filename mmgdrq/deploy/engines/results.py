"""What happens to the results of the blocks, so that ONNX Runtime computes every block in integers.

ONNX Runtime runs a convolution in integers only if its result is quantized too. Where a ReLU and the next layer's
input quantizer follow, it is. Everywhere else:

- where a max pooling stands in between, the grid of the next layer's input is used before it (the largest value
  and rounding commute, so nothing changes);
- where the network goes on otherwise (a residual addition, a neck), the result is rounded to an 8-bit grid: the one
  that the model was trained with (:mod:`.simulation`), else one whose range comes from the sample images;
- where the network ends, or a result leaves it, the block is computed as int32 and scaled in float.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ..export.block_module import BlockModule
from ..export.graph_reader import LAYERS, block_layers
from .block import SIGNED_ZERO, Grid

PASSED = ('Relu', 'MaxPool')
"""Operators that commute with rounding to a grid that has 0."""
COPIES = ('Cast', 'Identity')
"""What torch's exporter puts between a tensor that is read inside, too, and its place among the results."""


def plan_results(path: Path, exported: list[BlockModule]) -> None:
    """Set ``result``, ``reader``, ``rounds`` and ``ends`` of the blocks of a graph; an export after it has them.

    Args:
        path: ONNX file of the profile ``'onnxruntime'``, written without them.
        exported: the blocks in the order of the graph; one that is called several times occurs several times.

    Raises:
        ExportError: the graph does not have one convolution or matrix product for each block.
    """
    graph = _Graph(path)
    layers = [(node, module) for node, module in block_layers(graph.nodes, exported) if module.block.is_integer]
    blocks = {id(node): module for node, module in layers}
    wishes: dict[BlockModule, list[_Wish]] = defaultdict(list)
    for node, module in layers:
        if not module.is_product():  # the engine has integer products with float results
            wishes[module].append(_wish(graph, node, blocks))
    for module, calls in wishes.items():
        _settle(module, calls)


@dataclass(frozen=True)
class _Wish:
    """What would suit the result of one call of a block.

    Attributes:
        ends: to stay as it is.
        next: whether the reader's quantizer follows at once, so that the engine rounds by itself.
        grid: of the only reader; None: there are several, or something else in between.
    """

    ends: bool
    next: bool = False
    grid: Optional[Grid] = None


def _wish(graph: '_Graph', node, blocks) -> _Wish:
    if graph.ends(node):
        return _Wish(ends=True)
    return _Wish(False, graph.is_quantized_next(node), _of_reader(graph, node, blocks))


def _settle(module: BlockModule, calls: list[_Wish]) -> None:
    """The results of a block that is called several times may go to different places, but are computed alike."""
    grids = {call.grid for call in calls}
    only = grids.pop() if len(grids) == 1 else None
    module.ends = any(call.ends for call in calls)
    if module.ends:
        return
    if all(call.next for call in calls):
        module.reader = only
        return
    module.rounds = only is None
    module.result = only or module.trained or _of_range(*module.range)


def _of_reader(graph: '_Graph', node, blocks) -> Optional[Grid]:
    """The grid of the only layer that reads a pooled result."""
    reader = graph.only_layer_behind(node)
    if reader is None:
        return None
    if id(reader) not in blocks:
        return None
    block = blocks[id(reader)].block
    return Grid(block.step.item(), zero=SIGNED_ZERO if block.limits[0] < 0 else 0)


def _of_range(lowest: float, highest: float) -> Grid:
    scale = max((highest - lowest) / 255, 1e-12)
    return Grid(scale, min(max(round(-lowest / scale), 0), 255))


class _Graph:
    """Who reads what in an ONNX file."""

    def __init__(self, path: Path) -> None:
        import onnx

        graph = onnx.load(str(path)).graph
        self.nodes = list(graph.node)
        self.results = {output.name for output in graph.output}
        self.readers = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)

    def ends(self, node) -> bool:
        """Whether a result leaves the network, or leads to no further quantized layer."""
        name = self._behind(node, ('Relu',))
        return self._leaves(node.output[0]) or self._leaves(name) or not self._leads_to_layer(node.output[0])

    def _leaves(self, name: str) -> bool:
        copies = [node.output[0] for node in self.readers[name] if node.op_type in COPIES]
        return name in self.results or any(self._leaves(copy) for copy in copies)

    def is_quantized_next(self, node) -> bool:
        """Whether nothing but a ReLU and one input quantizer follow."""
        return self._kinds(self._behind(node, ('Relu',))) == ['QuantizeLinear']

    def only_layer_behind(self, node):
        """The layer behind ReLU, pooling and one input quantizer, if there is nothing else."""
        name = self._behind(node, PASSED)
        if self._kinds(name) != ['QuantizeLinear'] or name in self.results:
            return None
        while self.readers[name] and self.readers[name][0].op_type not in LAYERS:
            name = self.readers[name][0].output[0]
        return self.readers[name][0] if self.readers[name] else None

    def _behind(self, node, kinds) -> str:
        """Name of the result behind the operators of these kinds that alone read it."""
        name = node.output[0]
        while name not in self.results and len(self.readers[name]) == 1 and self.readers[name][0].op_type in kinds:
            name = self.readers[name][0].output[0]
        return name

    def _kinds(self, name: str) -> list[str]:
        return [node.op_type for node in self.readers[name]]

    def _leads_to_layer(self, name: str) -> bool:
        waiting, seen = [name], set()
        while waiting:
            for node in self.readers[waiting.pop()]:
                if node.op_type == 'QuantizeLinear':
                    return True
                fresh = [output for output in node.output if output not in seen]
                seen.update(fresh)
                waiting += fresh
        return False
