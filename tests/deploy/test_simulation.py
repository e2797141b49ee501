"""Training with what ONNX Runtime computes: the exported graph then has the codes and ranges of the torch model."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmgdrq
from mmgdrq.deploy import compare_blocks, load_folded, save_folded, simulate, simulated
from mmgdrq.deploy.deployment import export
from mmgdrq.deploy.engines.onnxruntime import bias_change, refinement_of
from mmgdrq.deploy.verification.codes import compare_codes
from mmgdrq.errors import CheckpointError, ConfigError, ExportError, QuantizationError
from tests.deploy.engines.test_block import Net

pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
QUANT = dict(weight=dict(bits=2), activation=dict(bits=4))


def quantized(**rules):
    torch.manual_seed(0)
    model = Net()
    model.bbox_head = nn.Identity()
    return mmgdrq.quantize(model, **QUANT, **rules)


def train(model, steps=6):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for _ in range(steps):
        x = torch.randn(4, 3, 16, 16, generator=generator)
        loss = sum(y.square().mean() for y in model(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope='module')
def trained():
    return train(simulate(quantized()))


def exported_of(model, out, profile='onnxruntime'):
    folded = mmgdrq.fold(model, example=X)
    (exported,) = export(folded, lambda m: m(X), out, profile)
    return folded, exported


def test_the_layers_are_those_of_the_export(trained, tmp_path):
    # stem and inner meet in an addition, pooled has two readers; head and other end the network
    results = simulated(trained)
    assert set(results) == {'norm', 'inner_norm', 'wide', 'pooled'}
    rounded = {name for name, result in results.items() if not isinstance(result.quantizer, nn.Identity)}
    assert rounded == {'norm', 'inner_norm', 'pooled'}
    _, exported = exported_of(trained, tmp_path)
    assert {m.block.name for m in exported.blocks if m.output.own} == {'stem', 'inner', 'pooled'}


def test_the_engine_has_the_codes_and_the_trained_ranges(trained, tmp_path):
    _, exported = exported_of(trained, tmp_path)
    for module in exported.blocks:
        tail = {'stem': 'norm', 'inner': 'inner_norm'}.get(module.block.name, module.block.name)
        if module.output.own:
            quantizer = simulated(trained)[tail].quantizer
            assert module.output.grid.scale == pytest.approx(float(quantizer.threshold) / 128)
            assert module.output.grid.zero == 128
    errors = compare_codes(exported, 'onnxruntime')
    assert errors.codes > 10_000
    assert errors.different <= 1
    assert errors.results < 1e-5


def results_of_blocks(model, names):
    """What leaves the end of each block, by module."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, args, y, name=name: seen.__setitem__(name, y))
        for name in names
    ]
    with torch.no_grad():
        model(X)
    for handle in handles:
        handle.remove()
    return seen


def test_the_trained_model_computes_what_is_exported(trained, tmp_path):
    """Block by block on equal inputs: quantized, folded, and the exported blocks."""
    folded, exported = exported_of(trained, tmp_path)
    blocks = {module.block.name: module for module in exported.blocks}
    tails = {'stem': 'norm', 'inner': 'inner_norm', 'wide': 'wide', 'pooled': 'pooled', 'head': 'head'}
    inputs = {}
    handles = [
        getattr(trained, name).register_forward_pre_hook(lambda m, args, name=name: inputs.update({name: args[0]}))
        for name in tails
    ]
    expected = results_of_blocks(trained, tails.values())
    for handle in handles:
        handle.remove()
    for name, tail in tails.items():
        found = blocks[name](inputs[name])
        y = folded.get_submodule(name)(inputs[name])
        y = folded.get_submodule(tail)(y) if tail != name else y
        output = blocks[name].output
        if output.grid is not None and not output.own:  # it takes the grid of its reader there
            continue
        scale = expected[tail].abs().max()
        assert torch.allclose(y, expected[tail], atol=2e-6 * scale)
        assert torch.allclose(found, expected[tail], atol=2e-6 * scale), name


def test_without_it_the_model_computes_something_else(tmp_path):
    """The comparison above can fail: results and biases are not on those grids by themselves."""
    model = train(quantized())
    _, exported = exported_of(model, tmp_path)
    block = next(module for module in exported.blocks if module.block.name == 'inner')
    x = torch.relu(results_of_blocks(model, ['norm'])['norm'])
    expected = model.inner_norm(model.inner(x))
    assert (block(x) - expected).abs().max() > 1e-3 * expected.abs().max()


def test_results_lie_on_256_values_while_training(trained):
    model = copy.deepcopy(trained).train()
    seen = results_of_blocks(model, ['inner_norm'])['inner_norm']
    quantizer = model.inner_norm.engine_result.quantizer
    step = quantizer.threshold / 128
    codes = seen / step
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert codes.min() >= -128.001
    assert codes.max() <= 127.001
    assert seen.unique().numel() > 20


def test_ranges_follow_the_training_and_stay_in_evaluation():
    model = simulate(quantized())
    quantizer = model.inner_norm.engine_result.quantizer
    with pytest.raises(QuantizationError, match='never set'):
        model.eval()(X)
    model.train()
    model(X)
    first = float(quantizer.threshold)
    model(3 * X)
    model(3 * X)
    model.eval()(X)  # it takes the last iteration's step
    second = float(quantizer.threshold)
    assert second != first > 0
    model(9 * X)
    assert float(quantizer.threshold) == second


@pytest.mark.parametrize('gamma', [0.7, -0.3])
def test_the_bias_is_a_multiple_of_a_unit(gamma):
    unit, offset = torch.tensor([0.02, 0.5]), torch.tensor([0.123, -7.7])
    scale = torch.full((2,), gamma)
    change = bias_change(unit, scale, offset, refinement=63)
    fine = scale.double() * unit.double() / 63
    codes = (offset + change).double() / fine
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert bool((change.abs() <= fine.abs() / 2 + 1e-7).all())


def test_the_bias_of_a_filter_without_scale_is_hardly_rounded():
    change = bias_change(
        torch.tensor([0.02, 0.5, 1.0]), torch.zeros(3), torch.tensor([0.123, -7.7, 0.0]), refinement=63
    )
    assert change.tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_it_survives_copies_and_new_batch_norms(trained):
    """EMA copies the model; the conversion to SyncBN makes its BN anew."""
    expected = trained(X)[0]
    twin = copy.deepcopy(trained)
    assert twin.norm.engine_result.layer[0] is twin.stem
    assert torch.equal(twin(X)[0], expected)
    for name in ('norm', 'inner_norm'):
        old = getattr(twin, name)
        new = nn.BatchNorm2d(8).eval()
        new.load_state_dict({key: value for key, value in old.state_dict().items() if 'engine_result' not in key})
        new.add_module('engine_result', old.engine_result)
        setattr(twin, name, new)
    assert torch.equal(twin(X)[0], expected)


def test_checkpoints(trained, tmp_path):
    state = trained.state_dict()
    assert 'inner_norm.engine_result.quantizer.threshold' in state
    again = simulate(quantized())
    again.load_state_dict(state)
    assert torch.equal(again.eval()(X)[0], trained(X)[0])
    plain = train(quantized()).state_dict()
    found = simulate(quantized()).load_state_dict(plain, strict=False)  # go on with a model that had none
    assert all('engine_result' in key for key in found.missing_keys)
    with pytest.raises(CheckpointError, match='belong to layers that the config does not quantize so'):
        quantized().load_state_dict(state)


def test_a_folded_directory_keeps_it(trained, tmp_path):
    folded = mmgdrq.fold(trained, example=X)
    path = save_folded(folded, tmp_path / 'out')
    loaded = load_folded(simulate(quantized()), path)
    assert torch.equal(loaded(X)[0], folded(X)[0])
    with pytest.raises(CheckpointError, match='engine_result'):
        load_folded(quantized(), path)


def test_folding_is_verified_without_it(trained):
    """A sum on a tie would look like an error of a whole step."""
    folded = mmgdrq.fold(trained, example=X)
    expected = trained(X)[0]
    errors = compare_blocks(trained, folded, lambda m: m(X))
    assert set(errors) == set(folded.gdrq_folded)
    assert max(errors.values()) < 1e-5
    assert torch.equal(trained(X)[0], expected)  # it is there again
    folded.inner_norm.weight.data *= 1.01
    assert compare_blocks(trained, folded, lambda m: m(X))['inner'] > 1e-3


def test_no_rounding_before_the_quantize_stage():
    model = simulate(quantized())
    mmgdrq.set_stage(model, 'float')
    plain = quantized()
    mmgdrq.set_stage(plain, 'float')
    assert torch.equal(model.train()(X)[0], plain.train()(X)[0])


@pytest.mark.parametrize('before', [False, True])
def test_a_float_layer_in_the_place_of_a_quantized_one_is_refused(before):
    model = quantized()
    if not before:
        simulate(model).train()(X)
    model.inner = nn.Conv2d(8, 8, 3, padding=1)
    with pytest.raises(QuantizationError, match='replaced by float layers, such as inner'):
        simulate(model) if before else model.eval()(X)


def test_errors(trained):
    with pytest.raises(ConfigError, match="deploy='openvino': expected 'onnxruntime'"):
        simulate(quantized(), 'openvino')
    with pytest.raises(ConfigError, match='simulates an engine already'):
        simulate(copy.deepcopy(trained))
    with pytest.raises(ConfigError, match='the model is not quantized'):
        simulate(Net())
    with pytest.raises(ExportError, match='has neither rpn_head'):
        simulate(mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))


CLASSIFIER = dict(
    base_type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=64, num_classes=10),
)


def test_by_config():
    init_default_scope('mmpretrain')
    model = MODELS.build(dict(type='mmgdrq.Quantized', **CLASSIFIER, quant=dict(**QUANT, deploy='onnxruntime')))
    rounded = {n for n, result in simulated(model).items() if not isinstance(result.quantizer, nn.Identity)}
    additions = {f'backbone.layer{i}.{j}.bn2' for i in (1, 2, 3, 4) for j in (0, 1)}
    assert rounded == additions | {'backbone.bn1'} | {f'backbone.layer{i}.0.downsample.1' for i in (2, 3, 4)}
    assert 'head.fc' not in simulated(model)
    with pytest.raises(ConfigError, match="deploy='tvm'"):
        MODELS.build(dict(type='mmgdrq.Quantized', **CLASSIFIER, quant=dict(**QUANT, deploy='tvm')))


class WithBias(Net):
    """Convolutions with a large bias before their BN."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        with torch.no_grad():
            self.stem.bias.uniform_(-3, 3)
            self.inner.bias.uniform_(-3, 3)


def test_a_bias_before_a_norm_is_rounded_with_it(tmp_path):
    """From the layer's own values: y = gamma (scale * sum + bias - mean) / sigma + beta, in multiples of a unit."""
    torch.manual_seed(0)
    model = WithBias()
    model.bbox_head = nn.Identity()
    model = train(simulate(mmgdrq.quantize(model, **QUANT)))
    _, exported = exported_of(model, tmp_path)
    blocks = {module.block.name: module.block for module in exported.blocks}
    for name, tail in (('stem', 'norm'), ('inner', 'inner_norm')):
        layer, norm = model.get_submodule(name), model.get_submodule(tail)
        sigma = (norm.running_var + norm.eps).double().sqrt()
        gain = norm.weight.detach().double() / sigma
        offset = (layer.bias.detach().double() - norm.running_mean.double()) * gain + norm.bias.detach().double()
        factor = refinement_of(blocks[name])
        fine = blocks[name].scale.double() / factor  # checked against the quantized model when it was exported
        expected = (offset / fine).round() * fine
        y = torch.zeros(1, 8, 1, 1)
        change = norm.engine_result.with_rounded_bias(norm, y).flatten().double()
        assert torch.allclose(offset + change, expected, atol=2e-6 * float(offset.abs().max()))
        assert float((expected - offset).abs().max()) > 1e-5
