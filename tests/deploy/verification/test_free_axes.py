"""Graphs take other batch and image sizes where they are right there, and refuse them elsewhere."""

import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.deploy.deployment import export
from mmgdrq.deploy.export.writer import BATCH, SIZE
from mmgdrq.deploy.verification.free_axes import right_axes
from mmgdrq.errors import ExportError, InputError
from mmgdrq_runtime.engines import open_engine

pytest.importorskip('onnx', reason='onnx is not installed')
ENGINES = ('onnxruntime', 'openvino')


class Net(nn.Module):
    """Two convolutions with something in between that may turn sizes into constants."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 4, 1)
        self.between = between

    def extract_feat(self, x):
        return self.between(torch.relu(self.first(x)))

    def forward(self, x):
        return self.head(self.extract_feat(x))


def nothing(x):
    return x


def batch_as_number(x):
    """As the windows of Swin."""
    n, c, h, w = x.shape
    return x.reshape(int(n), c, -1).reshape(int(n), c, h, w)


def size_as_number(x):
    """As the upsampling of mmseg."""
    small = F.avg_pool2d(x, 2)
    return x + F.interpolate(small, tuple(int(n) for n in x.shape[2:]), mode='nearest')


def size_as_crop(x):
    """Goes on without an error at larger sizes."""
    return x[:, :, : int(x.shape[2]), : int(x.shape[3])]


def only_one_size(x):
    if x.shape[2:] != (8, 12):
        raise AssertionError('wrong size')
    return x


def exported(between, folder, profile, batch=2):
    torch.manual_seed(0)
    model, x = Net(between), torch.rand(batch, 3, 16, 24)
    mmgdrq.quantize(model, weight=dict(bits=4), activation=dict(bits=8), rules=[dict(pattern='*', weight=dict())])
    with torch.no_grad():
        model.train()(x)
    (found,) = export(mmgdrq.fold(model.eval(), example=x), lambda m: m(x), folder, profile)
    return found


def test_the_export_says_what_is_fixed(tmp_path):
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    with pytest.warns(UserWarning, match=r'dense\.onnx takes inputs of 3x16x24 only: sizes'):
        exported(size_as_number, tmp_path, 'onnxruntime')
    with pytest.warns(UserWarning, match=r'dense\.onnx runs one input at a time: sizes'):
        exported(batch_as_number, tmp_path, 'onnxruntime')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        exported(nothing, tmp_path, 'onnxruntime')


def test_a_graph_that_is_wrong_on_the_sample_keeps_its_axes(tmp_path):
    """Sizes are not the reason, and fixed ones would not help."""
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    found = exported(nothing, tmp_path, 'onnxruntime')
    found.blocks[1].block = dataclasses.replace(found.blocks[1].block, offset=found.blocks[1].block.offset + 1)
    assert right_axes(found) == found.free == BATCH | SIZE


def errors_of(found, engine, x):
    run = open_engine(engine, found.path)
    with torch.no_grad():
        expected = found.part.module(x)[0]
    result = torch.from_numpy(run(x.numpy())[0])
    assert result.shape == expected.shape
    return float((result - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize(
    ('between', 'any_size'),
    [
        (nothing, True),
        (batch_as_number, True),
        (size_as_number, False),
        (size_as_crop, False),
        (only_one_size, False),
        (lambda x: size_as_crop(batch_as_number(x)), False),
    ],
)
@pytest.mark.parametrize('batch', [1, 2])
def test_other_shapes_are_right_or_refused(tmp_path, engine, between, any_size, batch):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    found = exported(between, tmp_path, engine, batch)
    for count in (1, 2, 3):
        assert errors_of(found, engine, torch.rand(count, 3, 16, 24)) < 0.02
    other = torch.rand(2, 3, 48, 32)
    if any_size:
        assert errors_of(found, engine, other) < 0.02
        return
    with pytest.raises(InputError, match=r'shape \(2, 3, 48, 32\); the graph takes \((any|1), 3, 16, 24\) only'):
        open_engine(engine, found.path)(other.numpy())


def mean_of_batch(x):
    return x.reshape(int(x.shape[0]), 8, 8, 12).mean(0)[:, None].expand(8, 8, 8, 12)


def test_results_that_belong_to_no_image_are_refused(tmp_path):
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    with pytest.raises(ExportError, match='the graph of dense would have the number of sample images as a constant'):
        exported(mean_of_batch, tmp_path, 'onnxruntime')


def test_an_engine_that_fails_says_where(tmp_path):
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    found = exported(nothing, tmp_path, 'onnxruntime')
    with pytest.raises(ExportError, match=r'dense\.onnx: fails on an input of shape \(1, 3, 0, 8\)'):
        open_engine('onnxruntime', found.path)(torch.rand(1, 3, 0, 8).numpy())
