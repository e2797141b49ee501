"""Adaptive pooling in exported graphs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmgdrq.deploy.export.pooling import any_size_pooling
from mmgdrq.deploy.export.writer import OPSET
from mmgdrq_runtime.engines import open_engine

pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')


class Pool(nn.Module):
    def __init__(self, cells) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x):
        return F.adaptive_avg_pool2d(x, self.cells)


@pytest.mark.parametrize('cells', [1, 3, (2, 5), (1, 4), 7])
@pytest.mark.parametrize('size', [(7, 7), (12, 9), (3, 20)])
def test_adaptive_pooling_for_any_size(tmp_path, cells, size):
    path = tmp_path / 'dense.onnx'
    axes = {'input': {2: 'height', 3: 'width'}}
    with any_size_pooling(OPSET):
        torch.onnx.export(
            Pool(cells),
            (torch.rand(1, 2, 8, 8),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=['input'],
            dynamic_axes=axes,
        )
    x = torch.rand(2, 2, *size)[:1]
    (found,) = open_engine('onnxruntime', path)(x.numpy())
    assert torch.allclose(torch.from_numpy(found), F.adaptive_avg_pool2d(x, cells), atol=1e-6)
