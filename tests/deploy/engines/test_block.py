"""Blocks in the forms and profiles of the engines, and the comparison of their codes."""

import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmgdrq.deploy.engines import find_engine
from mmgdrq.deploy.engines.base import Requantization
from mmgdrq.deploy.verification.codes import CodeErrors, check_codes, compare_codes
from mmgdrq.errors import ExportError
from mmgdrq_runtime.engines import open_engine
from tests.helpers.networks import Net, exported_of, trained_fold

pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_codes_agree_and_every_layer_is_an_integer_kernel(folded, tmp_path, engine):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    exported = exported_of(folded, tmp_path, engine)
    errors = compare_codes(exported, engine)
    assert errors.codes == sum(2 * n for n in (3 * 256, 8 * 256, 8 * 256, 16 * 64, 8 * 36, 8 * 36))
    assert errors.different == 0
    assert errors.results < 1e-5
    assert find_engine(engine).count_kernels(exported.path) == (6, 0)


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize(('gamma', 'zero'), [(0, False), (1e-12, False), (1e-8, False), (1, True)])
def test_a_filter_without_products_keeps_its_bias(tmp_path, engine, gamma, zero):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 3, 16, 16)
    model.bbox_head = nn.Identity()
    with torch.no_grad():
        model.inner_norm.weight[0], model.inner_norm.bias[0] = gamma, 0.8
        model.head.weight[1], model.head.bias[1] = 0, -0.7
        if zero:
            model.inner.weight[0] = 0
    folded = trained_fold(model, x, weight=dict(bits=4), activation=dict(bits=4))
    exported = exported_of((folded, x), tmp_path, engine)
    assert compare_codes(exported, engine).different == 0
    blocks = {module.block.name: module for module in exported.blocks}
    inner, zeros = blocks['inner'], torch.zeros(1, 8, 3, 3)
    grid = inner.output.grid
    expected = grid.scale * round(0.8 / grid.scale) if grid else 0.8
    assert inner(zeros)[0, 0].flatten().tolist() == pytest.approx([expected] * 9, rel=1e-5)
    results = open_engine(engine, exported.path)(x.numpy())
    assert results[0][:, 1] == pytest.approx(-0.7, rel=1e-5)


class Shared(nn.Module):
    """A layer that is called twice; two layers with ranges of their own read what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.other = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def extract_feat(self, x):
        return self.one(torch.relu(self.shared(x))), self.other(torch.relu(self.shared(3 * x)))

    def forward(self, x):
        return self.bbox_head(self.extract_feat(x))


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_a_shared_layer_may_be_read_by_several(tmp_path, engine):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(2, 3, 16, 16)
    folded = trained_fold(model, x, rules=[dict(pattern='*', weight=dict(bits=2), activation=dict(bits=4))])
    assert compare_codes(exported_of((folded, x), tmp_path, engine), engine).different <= 1


class SharedByPooling(nn.Module):
    """The result of a layer goes into an addition first, and through a pooling to a small grid then."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pooled, self.other = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)

    def extract_feat(self, x):
        x = torch.relu(self.stem(x))
        y = x + self.shared(x)
        return self.other(y), self.pooled(F.max_pool2d(torch.relu(self.shared(y)), 2))

    def forward(self, x):
        return self.bbox_head(self.extract_feat(x))


def test_the_grid_of_one_reader_does_not_change_what_another_reads(tmp_path):
    torch.manual_seed(0)
    model, x = SharedByPooling(), torch.rand(2, 3, 16, 16)
    folded = trained_fold(model, x, weight=dict(bits=8), activation=dict(bits=8))
    exported = exported_of((folded, x), tmp_path, 'onnxruntime')
    shared = next(module for module in exported.blocks if module.block.name == 'shared')
    assert shared.output.own
    assert compare_codes(exported, 'onnxruntime').different <= 1
    with torch.no_grad():
        expected, found = folded(x), exported.part.module(x)
    for ours, theirs in zip(expected, found):
        assert (ours - theirs).abs().mean() < 0.02 * ours.abs().mean()


def test_a_missing_engine_is_one_error(folded, tmp_path, monkeypatch):
    exported = exported_of(folded, tmp_path, 'openvino')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(ExportError, match='the package is not installed'):
        compare_codes(exported, 'openvino')


def test_results_that_stay_in_the_network_are_on_8_bit_grids(folded, tmp_path):
    exported = exported_of(folded, tmp_path, 'onnxruntime')
    blocks = {module.block.name: module for module in exported.blocks}
    assert {name for name, module in blocks.items() if module.output.in_float} == {'head', 'other'}
    # stem and inner meet in an addition, pooled has two readers, wide takes the grid of its only reader
    assert {name for name, module in blocks.items() if module.output.grid} == {'stem', 'inner', 'wide', 'pooled'}
    assert blocks['wide'].output.grid.scale == blocks['pooled'].block.step.item()
    assert all(module.output.grid is None for module in exported_of(folded, tmp_path, 'openvino').blocks)


class Pyramid(Net):
    """A level that leaves the network and is read inside as well, as those of an FPN with its RPN."""

    def extract_feat(self, x):
        level = self.pooled(torch.relu(self.wide(torch.relu(self.norm(self.stem(x))))))
        return level.float(), self.head(level)


def test_a_level_that_leaves_is_not_rounded_though_it_is_read_inside(tmp_path):
    torch.manual_seed(0)
    model, x = Pyramid(), torch.rand(2, 3, 16, 16)
    for name in ('inner', 'inner_norm', 'other'):
        delattr(model, name)
    folded = trained_fold(model, x, weight=dict(bits=2), activation=dict(bits=4))
    exported = exported_of((folded, x), tmp_path, 'onnxruntime')
    blocks = {module.block.name: module for module in exported.blocks}
    assert {name for name, module in blocks.items() if module.output.in_float} == {'pooled', 'head'}
    assert not any(module.output.own for module in exported.blocks)
    assert find_engine('onnxruntime').count_kernels(exported.path) == (4, 0)


def test_a_wrong_block_is_found(folded, tmp_path):
    exported = exported_of(folded, tmp_path, 'onnxruntime')
    inner = next(module for module in exported.blocks if module.block.name == 'inner')
    inner.block = dataclasses.replace(inner.block, offset=inner.block.offset + 3 * inner.output.grid.scale)
    errors = compare_codes(exported, 'onnxruntime')
    assert errors.worst == 'wide'
    assert errors.share > 0.01
    assert errors.distance > 0.05
    with pytest.raises(
        ExportError, match=r'onnxruntime computes dense\.onnx differently: .* \(most before wide; .* steps from a tie\)'
    ):
        check_codes(errors, 'onnxruntime', exported.path)


def test_one_code_that_is_on_no_tie_is_too_much_for_openvino(tmp_path):
    path = tmp_path / 'dense.onnx'
    tie = CodeErrors(codes=10**6, different=3, worst='wide', distance=2e-5, results=0.0)
    check_codes(tie, 'openvino', path)
    wrong = dataclasses.replace(tie, distance=0.1)
    check_codes(wrong, 'onnxruntime', path)  # behind a result of 8 bits on a tie
    with pytest.raises(ExportError, match='openvino computes'):
        check_codes(wrong, 'openvino', path)


def test_a_wrong_last_block_is_found(folded, tmp_path):
    exported = exported_of(folded, tmp_path, 'onnxruntime')
    exported.blocks[-1].block = dataclasses.replace(
        exported.blocks[-1].block, scale=exported.blocks[-1].block.scale * 2
    )
    errors = compare_codes(exported, 'onnxruntime')
    assert errors.different == 0
    assert errors.results > 0.1


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_other_forms_compute_nearly_the_same(folded, tmp_path, engine):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    low_bit = dict(folded[0].named_modules())['wide']
    for form, tolerance in (('float', 1.0), ('int8', 1.0), ('low-bit', 0.0)):
        exported = exported_of(folded, tmp_path, engine, form)
        block = next(module for module in exported.blocks if module.block.name == 'wide').block
        y = torch.rand(1, 8, 4, 4) * low_bit.input_codes.step * 15
        expected = low_bit(y)
        error = (find_engine(engine).compute(block, y, Requantization(in_float=True)) - expected).abs().max()
        assert error <= tolerance * low_bit.input_codes.step * 15 * 8 * low_bit.scale.max() + 1e-6
    assert find_engine(engine).count_kernels(exported_of(folded, tmp_path, engine, 'float').path) == (0, 6)
    assert find_engine(engine).count_kernels(exported_of(folded, tmp_path, engine, 'int8').path) == (6, 0)
