"""8-bit results of the convolutions that ONNX Runtime would otherwise compute in float.

ONNX Runtime runs a convolution in integers only if its result is quantized. Where a ReLU and the next layer's input
quantizer follow, it is; before a residual addition, a neck or another operator it is not, and an 8-bit quantizer takes
its place. The results of the network itself stay in float.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from ..errors import ExportError

LAYERS = ('Conv', 'Gemm')


def quantize_outputs(path: Path, ranges: list[tuple[float, float]]) -> int:
    """Add the missing quantizers to a graph of the profile ``'onnxruntime'``.

    Args:
        path: ONNX file, rewritten.
        ranges: lowest and highest result of every quantized block on the sample images, in the order of the graph.

    Returns:
        The number of results that were quantized.

    Raises:
        ExportError: the graph does not have one convolution or matrix product for each block.
    """
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type in LAYERS and _is_quantized(node, makers)]
    if len(layers) != len(ranges):
        raise ExportError(f'export: {path.name} has {len(layers)} quantized layers; expected {len(ranges)}')
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    results = {output.name for output in graph.output}
    nodes, count = [], 0
    chosen = {id(node): span for node, span in zip(layers, ranges) if _is_open(node.output[0], readers, results)}
    for node in graph.node:
        nodes.append(node)
        if id(node) in chosen:
            nodes += _quantizer(onnx, graph, node, *chosen[id(node)])
            count += 1
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(path))
    return count


def _is_quantized(node, makers) -> bool:
    return all(name in makers and makers[name].op_type == 'DequantizeLinear' for name in node.input[:2])


def _is_open(name: str, readers, results: set[str]) -> bool:
    """Whether something else than the quantizer of one next layer reads a result inside the network."""
    if name in results:
        return False
    following = readers[name]
    if [node.op_type for node in following] == ['Relu']:
        name = following[0].output[0]
        following = readers[name]
    return name in results or [node.op_type for node in following] != ['QuantizeLinear']


def _quantizer(onnx, graph, node, lowest: float, highest: float) -> list:
    """QuantizeLinear and DequantizeLinear behind ``node``; the readers of its result read the dequantized one."""
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)
    scale = max((highest - lowest) / 255, 1e-12)
    zero = int(np.clip(round(-lowest / scale), 0, 255))
    name = node.output[0]
    helper, kinds = onnx.helper, onnx.TensorProto
    graph.initializer.extend(
        [
            helper.make_tensor(f'{name}_scale', kinds.FLOAT, [], [scale]),
            helper.make_tensor(f'{name}_zero', kinds.UINT8, [], [zero]),
        ]
    )
    node.output[0] = f'{name}_float'
    parameters = [f'{name}_scale', f'{name}_zero']
    return [
        helper.make_node('QuantizeLinear', [f'{name}_float', *parameters], [f'{name}_codes']),
        helper.make_node('DequantizeLinear', [f'{name}_codes', *parameters], [name]),
    ]
