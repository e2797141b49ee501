"""Read in a written graph which nodes are the layers of blocks, and who reads what."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ...errors import ExportError
from ..engines.base import BlockCall
from .block_module import BlockModule

INTEGER_LAYERS = ('ConvInteger', 'MatMulInteger')
LAYERS = ('Conv', 'Gemm', 'MatMul', *INTEGER_LAYERS)
PASSED = ('Relu', 'MaxPool')
"""Operators that commute with rounding to a grid that has 0."""
COPIES = ('Cast', 'Identity')
"""What torch's exporter puts between a tensor that is read inside, too, and its place among the results."""
_FROM_CODES = ('Transpose', 'DequantizeLinear', 'Reshape', 'Slice', 'Gather')
"""What turns the packed codes of a block into the weight of its layer."""


def block_layers(nodes: Sequence, exported: Sequence[BlockModule]) -> list[tuple]:
    """The node and the block of every call of a block, in the order of the graph.

    The weight of a block is a constant of the graph, that of every other layer is a parameter or computed.

    Args:
        nodes: of an ONNX graph.
        exported: the blocks in the order of the graph; one that is called several times occurs several times.

    Raises:
        ExportError: the graph does not have one convolution or matrix product for each block.
    """
    makers = {name: node for node in nodes for name in node.output}
    layers = [node for node in nodes if node.op_type in LAYERS and _has_constant_weight(node, makers)]
    if len(layers) != len(exported):
        raise ExportError(
            f'export: the graph has {len(layers)} layers with constant weights; expected one for each of '
            f'{len(exported)} calls of quantized layers. Weights of other layers have to be parameters or buffers'
        )
    return list(zip(layers, exported))


def _has_constant_weight(layer, makers) -> bool:
    maker = makers.get(layer.input[1])
    while maker is not None and maker.op_type in _FROM_CODES:
        maker = makers.get(maker.input[0])
    return maker is not None and maker.op_type == 'Constant'


class GraphReader:
    """Who reads what in an ONNX file; see :class:`mmgdrq.deploy.engines.base.Reader`.

    Args:
        path: ONNX file.
        exported: the blocks in the order of the graph; one that is called several times occurs several times.

    Raises:
        ExportError: the graph does not have one convolution or matrix product for each block.
    """

    def __init__(self, path: Path, exported: Sequence[BlockModule]) -> None:
        import onnx

        graph = onnx.load(str(path)).graph
        self.nodes = list(graph.node)
        self.results = {output.name for output in graph.output}
        self.readers = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.calls = [
            BlockCall(node, module.block, module.range, module.trained, module.is_product())
            for node, module in block_layers(self.nodes, exported)
        ]

    def leaves(self, node) -> bool:
        """Whether an output leaves the network, or leads to no further quantized layer."""
        name = self._behind(node, ('Relu',))
        return self._is_result(node.output[0]) or self._is_result(name) or not self._leads_to_layer(node.output[0])

    def is_normalized_next(self, node) -> bool:
        """Whether a norm that is not part of the block reads the output."""
        return 'BatchNormalization' in self._kinds(node.output[0])

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

    def _is_result(self, name: str) -> bool:
        copies = [node.output[0] for node in self.readers[name] if node.op_type in COPIES]
        return name in self.results or any(self._is_result(copy) for copy in copies)

    def _behind(self, node, kinds) -> str:
        """Name of the tensor behind the operators of these kinds that alone read it."""
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
