"""Which nodes of an ONNX graph are the layers of blocks."""

from collections.abc import Sequence

from ...errors import ExportError
from .block_module import BlockModule

INTEGER_LAYERS = ('ConvInteger', 'MatMulInteger')
LAYERS = ('Conv', 'Gemm', 'MatMul', *INTEGER_LAYERS)
_FROM_CODES = ('Transpose', 'DequantizeLinear', 'Reshape', 'Slice', 'Gather')
"""What turns the packed codes of a block into the weight of its layer, see :mod:`.nodes`."""


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
