"""The engines' rounding, on sums of products that lie on ties as far as float32 can tell."""

import numpy as np
import pytest
import torch

from mmgdrq.deploy.engines.rounding import onnxruntime_result, openvino_alone, openvino_codes
from mmgdrq_runtime.engines import open_engine

onnx = pytest.importorskip('onnx')
FILTERS, CHANNELS, SIZE = 16, 32, 64
GRIDS = {
    'signed 4 bits': (-8, 7),
    'unsigned 4 bits': (0, 15),
    'signed 8 bits': (-128, 127),
    'unsigned 8 bits': (0, 255),
}


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


@pytest.mark.parametrize('limits', GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize('behind', ['convolution', 'pooling'])
def test_openvino(tmp_path, limits, behind):
    pytest.importorskip('openvino', reason='openvino is not installed')
    make, low = onnx.helper.make_node, limits[0]
    dtype, by_division = (np.int8 if low < 0 else np.uint8), 0
    for seed in range(4):
        case, path = Case(seed), tmp_path / f'{seed}.onnx'
        bounds = dict(low=limits[0] * case.step, high=limits[1] * case.step)
        nodes = case.nodes('bias')
        y = case.total() * case.unit + torch.from_numpy(case.bias).reshape(1, -1, 1, 1)
        if behind == 'pooling':
            nodes.append(make('MaxPool', ['y'], ['pooled'], kernel_shape=[2, 2], strides=[2, 2]))
            y = torch.nn.functional.max_pool2d(y, 2)
        nodes.append(make('Clip', ['pooled' if behind == 'pooling' else 'y', 'low', 'high'], ['clipped']))
        nodes.append(make('QuantizeLinear', ['clipped', 'step', 'code_zero'], ['codes']))
        write(path, nodes, dict(case.constants(), **bounds, code_zero=dtype(0)), dtype)
        alone = 'codes' in openvino_alone(path)
        assert alone == (behind == 'pooling')
        found, step = run('openvino', path, case), torch.tensor(case.step)
        assert torch.equal(found, openvino_codes(y, step, limits, alone))
        by_division += int((found != (y / step).round().clamp(*limits)).sum())
    assert by_division > 0, 'these values do not tell one formula from another'


def test_onnxruntime(tmp_path):
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    make, twice = onnx.helper.make_node, 0
    for seed in range(4):
        case, path = Case(seed), tmp_path / f'{seed}.onnx'
        bias = np.rint(case.bias.astype(np.float64) / case.unit.numpy().reshape(-1).astype(np.float64)).astype(np.int32)
        nodes = [
            make('DequantizeLinear', ['integer_bias', 'bias_scale', 'no_shift'], ['b'], axis=0),
            *case.nodes('b'),
            make('QuantizeLinear', ['y', 'step', 'code_zero'], ['codes']),
        ]
        more = dict(integer_bias=bias, bias_scale=case.unit.numpy().reshape(-1), no_shift=np.zeros(FILTERS, np.int32))
        write(path, nodes, dict(case.constants(), **more, code_zero=np.uint8(100)), np.uint8)
        total = case.total().double() + torch.from_numpy(bias).reshape(1, -1, 1, 1)
        found = run('onnxruntime', path, case) - 100
        assert torch.equal(found, onnxruntime_result(total, case.unit, float(case.step), (-100, 155)))
        y = total.float() * case.unit
        twice += int((found != (y / torch.tensor(case.step)).round().clamp(-100, 155)).sum())
    assert twice > 0, 'these values do not tell one formula from another'
