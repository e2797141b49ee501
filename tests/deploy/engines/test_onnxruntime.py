"""ONNX Runtime's rounding, on sums of products that lie on ties as far as float32 can tell."""

import numpy as np
import pytest
import torch

from mmgdrq.deploy.engines.onnxruntime import requantized_codes

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
from tests.helpers.ties import FILTERS, Case, run, write  # noqa: E402


def test_codes_near_ties(tmp_path):
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
        assert torch.equal(found, requantized_codes(total, case.unit, float(case.step), (-100, 155)))
        y = total.float() * case.unit
        twice += int((found != (y / torch.tensor(case.step)).round().clamp(-100, 155)).sum())
    assert twice > 0, 'these values do not tell one formula from another'
