"""Clip codes instead of values: ``Clip`` before a quantizer becomes a narrower ``Clip`` behind it.

ONNX Runtime leaves a convolution in float where a float ``Clip``, such as ReLU6, stands between it and its quantizer.
Rounding is monotone, so clipping the codes to those of the bounds gives the same codes.
"""

import numpy as np

PASSED = ('MaxPool',)
"""Operators that commute with clipping."""


def clip_codes(model) -> None:
    """Rewrite an ONNX model with the same results; a clipped value that something else reads stays as it is."""
    graph = _Graph(model.graph)
    for clip in [node for node in model.graph.node if node.op_type == 'Clip']:
        bounds = [graph.constant(name) for name in clip.input[1:3]]
        quantizer = graph.quantizer_behind(clip)
        if quantizer is None or len(bounds) != 2 or any(b is None or b.dtype != np.float32 for b in bounds):
            continue
        scale, zero = (graph.constant(name) for name in quantizer.input[1:3])
        if scale is None or zero is None or scale.size != 1:
            continue
        graph.narrow(quantizer, [_code(bound, scale, zero) for bound in bounds], zero.dtype)
        graph.remove(clip)


def _code(bound: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> int:
    """What ``QuantizeLinear`` makes of a bound."""
    info = np.iinfo(zero.dtype)
    return int(np.clip(np.rint(bound / scale).astype(np.float64) + int(zero), info.min, info.max))


class _Graph:
    def __init__(self, graph) -> None:
        import onnx

        self.onnx, self.graph = onnx, graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.results = {output.name for output in graph.output}

    def readers(self, name: str) -> list:
        return [node for node in self.graph.node if name in node.input]

    def constant(self, name: str):
        """The value of a constant node; None: something else."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type != 'Constant':
            return None
        return self.onnx.numpy_helper.to_array(maker.attribute[0].t)

    def quantizer_behind(self, node):
        """The quantizer that alone reads a node's result, at most behind a pooling."""
        while True:
            readers = self.readers(node.output[0])
            if len(readers) != 1 or node.output[0] in self.results:
                return None
            if readers[0].op_type == 'QuantizeLinear':
                return readers[0]
            if readers[0].op_type not in PASSED:
                return None
            node = readers[0]

    def narrow(self, quantizer, limits: list[int], dtype) -> None:
        """Clip the codes of a quantizer, in the ``Clip`` behind it if it has one."""
        (codes,) = quantizer.output
        readers = self.readers(codes)
        if len(readers) == 1 and readers[0].op_type == 'Clip':
            old = [int(self.constant(name)) for name in readers[0].input[1:3]]
            limits = [max(limits[0], old[0]), min(limits[1], old[1])]
            readers[0].input[1:] = self._constants(codes, limits, dtype)
            return
        clipped = f'{codes}_clipped'
        for reader in readers:
            reader.input[:] = [clipped if name == codes else name for name in reader.input]
        self._insert(self.onnx.helper.make_node('Clip', [codes, *self._constants(codes, limits, dtype)], [clipped]))

    def _constants(self, name: str, values: list[int], dtype) -> list[str]:
        names = [f'{name}_{end}' for end in ('lowest', 'highest')]
        for constant, value in zip(names, values):
            tensor = self.onnx.numpy_helper.from_array(np.array(value, dtype))
            node = self.onnx.helper.make_node('Constant', [], [constant], value=tensor)
            self.graph.node.insert(0, node)
            self.makers[constant] = node
        return names

    def _insert(self, node) -> None:
        """Behind the node that makes its first input."""
        position = next(i for i, other in enumerate(self.graph.node) if node.input[0] in other.output)
        self.graph.node.insert(position + 1, node)

    def remove(self, node) -> None:
        """Let the readers of a node read its first input."""
        for reader in self.readers(node.output[0]):
            reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
        self.graph.node.remove(node)
