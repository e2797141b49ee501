"""Blocks in the forms and profiles of the engines, and the comparison of their codes."""

import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.deploy.codes import CodeErrors, check_codes, compare_codes
from mmgdrq.deploy.engines import open_engine
from mmgdrq.deploy.export import OPSET, export
from mmgdrq.deploy.forms import FORMS
from mmgdrq.deploy.kernels import count_kernels
from mmgdrq.deploy.latency import interleave, speedup
from mmgdrq.deploy.pooling import any_size_pooling
from mmgdrq.errors import ExportError

pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')


class Net(nn.Module):
    """Every kind of result: before a pooling, a residual addition, a ReLU, two readers, and the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 16, 1)
        self.pooled = nn.Conv2d(16, 8, 3)
        self.head, self.other = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1)

    def extract_feat(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.inner_norm(self.inner(x)))
        x = self.pooled(F.max_pool2d(torch.relu(self.wide(x)), 2))
        return self.head(x), self.other(x)

    def forward(self, x):
        return self.bbox_head(self.extract_feat(x))


@pytest.fixture
def folded():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 3, 16, 16)
    model.bbox_head = nn.Identity()
    quant = dict(weight=dict(bits=2), activation=dict(bits=4))
    mmgdrq.quantize(model, rules=[dict(pattern='*', **quant), dict(pattern='stem', activation=dict(bits=8))])
    with torch.no_grad():
        for _ in range(2):
            model.train()(x)
    return mmgdrq.fold(model.eval(), example=x), x


def exported_of(folded, out, profile, form='low-bit'):
    model, x = folded
    (exported,) = export(model, lambda m: m(x), out, profile, FORMS[form])
    return exported


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_codes_agree_and_every_layer_is_an_integer_kernel(folded, tmp_path, engine):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    exported = exported_of(folded, tmp_path, engine)
    errors = compare_codes(exported, engine)
    assert errors.codes == sum(2 * n for n in (3 * 256, 8 * 256, 8 * 256, 16 * 64, 8 * 36, 8 * 36))
    assert errors.different == 0
    assert errors.results < 1e-5
    assert count_kernels(engine, exported.path) == (6, 0)


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
    mmgdrq.quantize(model, weight=dict(bits=4), activation=dict(bits=4))
    model.train()(x)
    folded = mmgdrq.fold(model.eval(), example=x)
    exported = exported_of((folded, x), tmp_path, engine)
    assert compare_codes(exported, engine).different == 0
    blocks = {module.block.name: module for module in exported.blocks}
    assert blocks['inner'].offset()[0].item() == pytest.approx(0.8, rel=1e-5)
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
    model.bbox_head = nn.Identity()
    mmgdrq.quantize(model, rules=[dict(pattern='*', weight=dict(bits=2), activation=dict(bits=4))])
    model.train()(x)
    folded = mmgdrq.fold(model.eval(), example=x)
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
    model.bbox_head = nn.Identity()
    mmgdrq.quantize(model, weight=dict(bits=8), activation=dict(bits=8))
    with torch.no_grad():
        model.train()(x)
    folded = mmgdrq.fold(model.eval(), example=x)
    exported = exported_of((folded, x), tmp_path, 'onnxruntime')
    shared = next(module for module in exported.blocks if module.block.name == 'shared')
    assert shared.rounds
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


def test_graphs_for_tensorrt_are_checked_as_they_are_written(folded, tmp_path):
    """ONNX Runtime would make an integer of the float bias."""
    exported = exported_of(folded, tmp_path, 'tensorrt')
    errors = compare_codes(exported, 'onnxruntime', optimize=False)
    assert errors.different <= 2
    assert errors.distance < 1e-4
    check_codes(errors, 'onnxruntime', exported.path)


def test_results_that_stay_in_the_network_are_on_8_bit_grids(folded, tmp_path):
    exported = exported_of(folded, tmp_path, 'onnxruntime')
    blocks = {module.block.name: module for module in exported.blocks}
    assert {name for name, module in blocks.items() if module.ends} == {'head', 'other'}
    # stem and inner meet in an addition, pooled has two readers, wide takes the grid of its only reader
    assert {name for name, module in blocks.items() if module.result} == {'stem', 'inner', 'wide', 'pooled'}
    assert blocks['wide'].result.scale == blocks['pooled'].block.step.item()
    assert all(module.result is None for module in exported_of(folded, tmp_path, 'openvino').blocks)


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
    model.bbox_head = nn.Identity()
    mmgdrq.quantize(model, weight=dict(bits=2), activation=dict(bits=4))
    with torch.no_grad():
        for _ in range(2):
            model.train()(x)
    exported = exported_of((mmgdrq.fold(model.eval(), example=x), x), tmp_path, 'onnxruntime')
    blocks = {module.block.name: module for module in exported.blocks}
    assert {name for name, module in blocks.items() if module.ends} == {'pooled', 'head'}
    assert not any(module.rounds for module in exported.blocks)
    assert count_kernels('onnxruntime', exported.path) == (4, 0)


def test_a_wrong_block_is_found(folded, tmp_path):
    exported = exported_of(folded, tmp_path, 'onnxruntime')
    inner = next(module for module in exported.blocks if module.block.name == 'inner')
    inner.block = dataclasses.replace(inner.block, offset=inner.block.offset + 3 * inner.result.scale)
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
        error = (block.rescale(block.multiply(block.encode(y)), block.offset) - expected).abs().max()
        assert error <= tolerance * low_bit.input_codes.step * 15 * 8 * low_bit.scale.max() + 1e-6
    assert count_kernels(engine, exported_of(folded, tmp_path, engine, 'float').path) == (0, 6)
    assert count_kernels(engine, exported_of(folded, tmp_path, engine, 'int8').path) == (6, 0)


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


class WithTransposed(Net):
    """A transposed convolution has no integer form; it runs in float between rounded inputs and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.last = nn.Conv2d(8, 3, 1)

    def extract_feat(self, x):
        x = F.max_pool2d(torch.relu(self.norm(self.stem(x))), 2)
        return self.last(torch.relu(self.up(x)))


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_layers_without_an_integer_form_are_exported_in_float(tmp_path, engine):
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    torch.manual_seed(0)
    model, x = WithTransposed(), torch.rand(2, 3, 16, 16)
    model.bbox_head = nn.Identity()
    mmgdrq.quantize(model, rules=[dict(pattern='*', weight=dict(bits=2), activation=dict(bits=4))])
    with torch.no_grad():
        for _ in range(2):
            model.train()(x)
    unused = ('inner', 'wide', 'pooled', 'head', 'other')
    for name in unused:
        delattr(model, name)
    folded = mmgdrq.fold(model.eval(), example=x)
    exported = exported_of((folded, x), tmp_path, engine)
    assert count_kernels(engine, exported.path)[0] == len(exported.blocks) == 2
    assert compare_codes(exported, engine).share < 1e-3
    found = torch.from_numpy(open_engine(engine, exported.path)(x.numpy())[0])
    expected = folded(x).detach()
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_the_tensorrt_profile_has_symmetric_int8_only(folded, tmp_path):
    import onnx

    exported = exported_of(folded, tmp_path, 'tensorrt')
    graph = onnx.load(str(exported.path)).graph
    constants = {
        n.output[0]: onnx.numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == 'Constant'
    }
    quantizers = [n for n in graph.node if n.op_type in ('QuantizeLinear', 'DequantizeLinear')]
    zeros = [constants[node.input[2]] for node in quantizers]
    assert len(quantizers) == 3 * len(exported.blocks)
    assert all(zero.dtype.name == 'int8' and not zero.any() for zero in zeros)
    assert {module.block.limits for module in exported.blocks} == {(-128, 127), (0, 15), (-8, 7)}
    assert compare_codes(exported, 'onnxruntime').different <= 1


def test_an_unsigned_8_bit_input_has_seven_bits_for_tensorrt(tmp_path):
    torch.manual_seed(0)
    model, x = Net(), torch.rand(2, 3, 16, 16)
    model.bbox_head = nn.Identity()
    mmgdrq.quantize(model, weight=dict(bits=4), activation=dict(bits=8))
    with torch.no_grad():
        for _ in range(2):
            model.train()(x)
    folded = mmgdrq.fold(model.eval(), example=x)
    exported = exported_of((folded, x), tmp_path, 'tensorrt')
    stem = next(module.block for module in exported.blocks if module.block.name == 'stem')
    assert stem.limits == (0, 127)
    assert stem.step * 127 == pytest.approx(float(folded.stem.input_codes.step) * 255)
    with torch.no_grad():
        expected, found = folded(x), exported.part.module(x)
    assert len(expected) == len(found)
    for ours, theirs in zip(expected, found):
        assert (ours - theirs).abs().mean() < 0.1 * ours.abs().mean()
    assert compare_codes(exported, 'onnxruntime').different <= 1


FLOAT_PARTS = {
    'float weights': (dict(weight=dict(bits=32)), 5),
    'float inputs': (dict(activation=dict(bits=32)), 0),
    'a float layer': (dict(rules=[dict(pattern='body.5', skip=True)]), 4),
    'a layer with float inputs': (dict(rules=[dict(pattern='body.5', activation=dict(bits=32))]), 4),
    'a layer with float weights': (dict(rules=[dict(pattern='body.5', weight=dict(bits=32))]), 5),
}


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('case', FLOAT_PARTS)
def test_float_weights_and_inputs_stay_float(tmp_path, engine, case):
    """Layer 5 reads the result of a quantized layer without anything in between."""
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    options, inputs = FLOAT_PARTS[case]
    torch.manual_seed(0)
    conv, norm = lambda: nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), conv(), nn.BatchNorm2d(8), conv(), nn.ReLU(), conv())
    model, x = Stack(nn.Sequential(*body, nn.ReLU(), nn.Conv2d(8, 4, 1))), torch.rand(2, 3, 16, 16)
    mmgdrq.quantize(model, **{**dict(weight=dict(bits=2), activation=dict(bits=4)), **options})
    with torch.no_grad():
        model.train()(x)
    exported = exported_of((mmgdrq.fold(model.eval(), example=x), x), tmp_path, engine)
    errors = compare_codes(exported, engine)
    assert len(exported.blocks) == 5 - ('skip' in str(options))
    assert sum(module.block.limits is not None for module in exported.blocks) == inputs
    assert (errors.codes > 0) == (inputs > 0)
    assert errors.different <= 1
    assert errors.results < 1e-5


class Stack(nn.Module):
    """A model that is one stack of layers."""

    def __init__(self, body) -> None:
        super().__init__()
        self.body, self.bbox_head = body, nn.Identity()

    def extract_feat(self, x):
        return self.body(x)

    def forward(self, x):
        return self.bbox_head(self.extract_feat(x))


@pytest.mark.parametrize('options', [dict(weight=dict(bits=32)), dict(activation=dict(bits=32))], ids=str)
def test_the_float_form_of_half_quantized_layers_is_float(tmp_path, options):
    """Else a network would be compared with itself."""
    torch.manual_seed(0)
    stack = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1))
    model, x = Stack(stack), torch.rand(2, 3, 16, 16)
    mmgdrq.quantize(model, **{**dict(weight=dict(bits=2), activation=dict(bits=8)), **options})
    with torch.no_grad():
        model.train()(x)
    folded = mmgdrq.fold(model.eval(), example=x)
    exported = exported_of((folded, x), tmp_path, 'onnxruntime', 'float')
    assert b'quantizelinear' not in exported.path.read_bytes().lower()
    (found,) = open_engine('onnxruntime', exported.path)(x.numpy())
    expected = folded(x).detach()
    assert (torch.from_numpy(found) - expected).abs().mean() < 0.02 * expected.abs().mean()
