"""Graphs whose sums of products lie on ties, as far as float32 can tell."""

import numpy as np
import onnx
import torch

from mmgdrq_runtime.engines import open_engine

FILTERS, CHANNELS, SIZE = 16, 32, 64


class Case:
    """A convolution on codes whose results are multiples of a fraction of ``step``, but for the rounding of scales."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.input_step, self.step = rng.uniform(0.02, 0.2, 2).astype(np.float32)
        self.scale = (self.step / rng.choice([16.0, 32.0, 64.0], FILTERS) / self.input_step).astype(np.float32)
        self.halves = rng.integers(-20, 20, FILTERS)
        self.codes = rng.integers(0, 16, (1, CHANNELS, SIZE, SIZE)).astype(np.uint8)
        self.weight = (2 * rng.integers(-2, 2, (FILTERS, CHANNELS, 1, 1)) + 1).astype(np.int8)

    @property
    def unit(self) -> torch.Tensor:
        return torch.from_numpy(self.input_step * self.scale).reshape(1, -1, 1, 1)

    @property
    def bias(self) -> np.ndarray:
        return (self.halves * self.step / 2).astype(np.float32)

    def total(self) -> torch.Tensor:
        return torch.nn.functional.conv2d(torch.from_numpy(self.codes).float(), torch.from_numpy(self.weight).float())

    def nodes(self, bias: str):
        make = onnx.helper.make_node
        return [
            make('DequantizeLinear', ['input', 'input_step', 'zero'], ['x']),
            make('DequantizeLinear', ['weight', 'scale', 'zeros'], ['w'], axis=0),
            make('Conv', ['x', 'w', bias], ['y'], kernel_shape=[1, 1]),
        ]

    def constants(self) -> dict:
        zeros = np.zeros(FILTERS, np.int8)
        names = ('input_step', 'step', 'scale', 'bias', 'weight')
        return dict({n: getattr(self, n) for n in names}, zeros=zeros, zero=np.uint8(0))


def write(path, nodes, constants: dict, dtype) -> None:
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info('input', onnx.TensorProto.UINT8, [1, CHANNELS, SIZE, SIZE])]
    outputs = [helper.make_tensor_value_info('codes', kind, None)]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, 'graph', inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8), str(path))


def run(engine: str, path, case: Case) -> torch.Tensor:
    feed = open_engine(engine, path)
    return torch.from_numpy(feed(case.codes)[0].astype(np.float32))
