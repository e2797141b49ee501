"""OpenVINO's rounding, on sums of products that lie on ties as far as float32 can tell."""

import numpy as np
import pytest
import torch

from mmgdrq.deploy.engines import find_engine

onnx = pytest.importorskip('onnx')
pytest.importorskip('openvino', reason='openvino is not installed')
from tests.helpers.ties import Case, run, write  # noqa: E402

ASYMMETRIC = dict(nearest_mode='floor', coordinate_transformation_mode='asymmetric')
GRIDS = {
    'signed 4 bits': (-8, 7),
    'unsigned 4 bits': (0, 15),
    'signed 8 bits': (-128, 127),
    'unsigned 8 bits': (0, 255),
}


@pytest.mark.parametrize('limits', GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize('behind', ['convolution', 'pooling', 'resizing'])
def test_codes_near_ties(tmp_path, limits, behind):
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
        if behind == 'resizing':
            nodes.append(make('Resize', ['y', '', 'scales'], ['pooled'], mode='nearest', **ASYMMETRIC))
            y = torch.nn.functional.interpolate(y, scale_factor=2, mode='nearest')
        nodes.append(make('Clip', ['y' if behind == 'convolution' else 'pooled', 'low', 'high'], ['clipped']))
        nodes.append(make('QuantizeLinear', ['clipped', 'step', 'code_zero'], ['codes']))
        write(path, nodes, dict(case.constants(), **bounds, code_zero=dtype(0), scales=np.float32([1, 1, 2, 2])), dtype)
        kernel = find_engine('openvino').quantizer_kernels(path).get('codes')
        assert (kernel == 'FakeQuantize') == (behind == 'pooling')
        assert (kernel == 'Interpolate') == (behind == 'resizing')
        found, step = run('openvino', path, case), torch.tensor(case.step)
        assert torch.equal(found, find_engine('openvino').codes(y, step, 0, limits, kernel))
        by_division += int((found != (y / step).round().clamp(*limits)).sum())
    assert by_division > 0, 'these values do not tell one formula from another'
