"""Kernels and times of the engines."""

import pytest

from mmgdrq.deploy.engines.kernels import count_kernels
from mmgdrq.deploy.verification.latency import interleave, speedup
from mmgdrq.errors import ExportError

pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')


def test_kernels_of_an_unknown_engine(tmp_path):
    with pytest.raises(ExportError, match=r"'tflite' is unknown\. Expected one of onnxruntime, openvino"):
        count_kernels('tflite', tmp_path / 'x.onnx')


def test_interleaved_times():
    order = []
    times = interleave({'a': lambda: order.append('a'), 'b': lambda: order.append('b')}, rounds=3, warmup=1)
    assert order == ['a', 'b'] * 4
    assert {name: len(values) for name, values in times.items()} == {'a': 3, 'b': 3}
    assert speedup({'a': [1.0, 2.0, 9.0], 'b': [2.0, 6.0, 18.0]}, 'a', 'b') == 2.0
    with pytest.raises(ValueError, match='rounds=0'):
        interleave({'a': order.clear}, rounds=0)
