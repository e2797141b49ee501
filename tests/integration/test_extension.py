"""What is added to the package from outside, without editing it."""

import numpy as np
import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.deploy import plug_engine
from mmgdrq.deploy.deployment import deploy
from mmgdrq.deploy.engines import Engine, register_engine
from mmgdrq.deploy.engines.base import _ENGINES
from mmgdrq.errors import ConfigError
from mmgdrq.planning.known_heads import _HEADS
from mmgdrq.quant import ActivationSpec, Range, RangeRule, WeightSpec, register_range_rule
from mmgdrq.quantized_model.dense_parts import _KINDS, module_part, parts_of, register_dense_parts
from mmgdrq_runtime.engines import open_engine
from tests.helpers.nets import inputs, small_net
from tests.helpers.networks import Stack


@register_range_rule('rms')
class RootMeanSquare(RangeRule):
    """Three times the root mean square, of weights and of inputs."""

    def of_weight(self, weight, spec):
        assert spec.group_size == 1
        return weight.detach().flatten(1).square().mean(1).sqrt() * 3

    def collect(self, x, spec, signed):
        return torch.stack([x.double().square().sum(), torch.tensor(x.numel(), dtype=torch.float64)])

    def range_of(self, statistic, spec, signed):
        squares, count = statistic.unbind(-1)
        return Range.up_to((squares / count).sqrt() * 3, signed)


@register_range_rule('counts')
class Counts(RangeRule):
    """A statistic of another shape: how many elements lie below 1, 2 and 4."""

    shape = (3, 1)

    def collect(self, x, spec, signed):
        return torch.stack([(x.abs() < bound).double().sum() for bound in (1, 2, 4)])[:, None]

    def is_empty(self, statistic):
        return statistic[..., -1, 0] == 0

    def range_of(self, statistic, spec, signed):
        share = statistic[..., :, 0] / statistic[..., -1:, 0]
        index = (share < 0.9).sum(-1).clamp(max=2)
        threshold = torch.tensor([1.0, 2.0, 4.0])[index]
        return Range.up_to(torch.where(self.is_empty(statistic), torch.nan, threshold), signed)


def rms(x):
    return 3 * float(np.sqrt(np.mean(np.square(np.float64(x)))))


def test_a_range_rule_from_outside_quantizes_weights_and_inputs():
    net = mmgdrq.quantize(small_net(), weight=dict(range='rms', bits=4), activation=dict(range='rms', momentum=0.5))
    net.train()
    first, second = inputs(1), inputs(2)
    net(first)
    quantizer = net[0].activation_quantizer
    assert float(quantizer.threshold) == pytest.approx(rms(first), rel=1e-6)
    net(second)
    state = net.state_dict()
    wanted = (rms(first) + rms(second)) / 2
    assert float(state['0.activation_quantizer.threshold']) == pytest.approx(wanted, rel=1e-6)
    weight = net[3].weight.detach()  # the image layer has 8 bits
    step = torch.tensor([rms(row) for row in weight]) / 8
    codes = (weight / step[:, None, None, None]).round().clamp(-8, 7)
    found = net[3].weight_quantizer(weight)
    torch.testing.assert_close(found, codes * step[:, None, None, None], rtol=1e-6, atol=0)


def test_a_statistic_of_another_shape():
    net = mmgdrq.quantize(small_net(), activation=dict(range='counts'))
    net.train()
    net(inputs(1) * 0.1)
    assert float(net[0].activation_quantizer.threshold) == 1
    net(inputs(1) * 1.1)
    assert float(net.state_dict()['0.activation_quantizer.threshold']) == pytest.approx(1 + 0.1 * 1)
    again = mmgdrq.quantize(small_net(), activation=dict(range='counts'))
    again.load_state_dict(net.state_dict())
    assert float(again[0].activation_quantizer.threshold) == pytest.approx(1.1)


def test_a_rule_is_for_what_it_overrides():
    assert WeightSpec(range='rms').range == ActivationSpec(range='rms').range == 'rms'
    assert ActivationSpec(range='counts').range == 'counts'
    with pytest.raises(ConfigError, match=r"weight: range='counts' is unknown.*'rms'"):
        WeightSpec(range='counts')


def test_a_name_belongs_to_one_class():
    register_range_rule('rms')(RootMeanSquare)  # as when its module is reloaded
    with pytest.raises(ConfigError, match=r"range='mean' is .*Mean already"):
        register_range_rule('mean')(RootMeanSquare)
    with pytest.raises(ConfigError, match='subclass of'):
        register_range_rule('other')(dict)


class TwoTowers(nn.Module):
    """Neither a detector nor a segmentor nor a classifier of OpenMMLab."""

    def __init__(self) -> None:
        super().__init__()
        towers = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)) for _ in range(2)]
        self.left, self.right = towers

    def forward(self, x):
        return self.left(x) * self.right(-x).sigmoid()


@pytest.fixture
def two_towers():
    """Parts of such models are known, and their prediction layers."""
    kind = register_dense_parts(
        lambda model: isinstance(model, TwoTowers),
        lambda model: [module_part('left', model.left), module_part('right', model.right)],
    )
    mmgdrq.register_prediction_layers('TwoTowers', ['left', 'right'])
    yield TwoTowers()
    _KINDS.remove(kind)
    del _HEADS['TwoTowers']


def test_a_head_from_outside_has_its_prediction_layers(two_towers):
    found = {row.name: row.reason for row in mmgdrq.plan(two_towers) if row.reason.startswith('prediction')}
    assert found == dict.fromkeys(['left.2', 'right.2'], 'prediction layer (TwoTowers)')


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_dense_parts_from_outside_run_in_an_engine(two_towers, tmp_path, engine):
    pytest.importorskip('onnx', reason='onnx is not installed')
    pytest.importorskip(engine, reason=f'{engine} is not installed')
    from mmgdrq.deploy import plug_engine, save_folded
    from mmgdrq.deploy.deployment import export

    torch.manual_seed(0)
    x = torch.rand(2, 3, 12, 12)
    model = mmgdrq.quantize(two_towers, weight=dict(bits=8), activation=dict(bits=8)).train()
    with torch.no_grad():
        model(x)
        folded = mmgdrq.fold(model.eval(), example=x)
        expected = folded(x)

    def graphs(folder):
        (folder / engine).mkdir()
        parts = export(folded, lambda target: target(x), folder / engine, engine)
        assert [part.part.name for part in parts] == ['left', 'right']
        return {engine: {part.part.name: part.entry() for part in parts}}

    path = save_folded(folded, tmp_path / 'out', graphs=graphs)
    found = plug_engine(folded, path, engine, 1)(x)
    assert type(found) is torch.Tensor
    assert torch.allclose(found, expected, atol=0.02 * float(expected.abs().max()))


class Literal(Engine):
    """An engine that takes the ONNX standard to the letter; here ONNX Runtime runs it without optimization."""

    name = 'literal'

    def check_installed(self):
        pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')

    def open(self, path, threads=0, optimize=True):
        return open_engine('onnxruntime', path, threads, optimize=False)

    def count_kernels(self, path):
        return 0, 0


@pytest.fixture
def literal():
    register_engine(Literal())
    yield 'literal'
    del _ENGINES['literal']


def test_an_engine_from_outside_runs_the_graphs_that_it_asked_for(literal, tmp_path):
    pytest.importorskip('onnx', reason='onnx is not installed')
    torch.manual_seed(0)
    model, batches = Stack(small_net()), [inputs(0), inputs(1)]
    mmgdrq.quantize(model, weight=dict(bits=4), activation=dict(bits=8)).train()
    with torch.no_grad():
        model(batches[0])
    report = deploy(model, batches, lambda m, x: m(x), str(tmp_path / 'out'), [literal], rounds=1)
    assert [(graph.engine, graph.integer) for graph in report.graphs] == [('literal', 0)]
    assert report.graphs[0].different == 0
    folded = mmgdrq.fold(model.eval(), batches[0])
    expected = folded(batches[1]).detach()
    found = plug_engine(folded, tmp_path / 'out', literal)(batches[1])
    assert torch.allclose(found, expected, atol=0.02 * float(expected.abs().max()))


def test_without_it_the_parts_are_not_known():
    with pytest.raises(mmgdrq.errors.ExportError, match=r'TwoTowers has neither rpn_head .*register_dense_parts'):
        parts_of(TwoTowers())


class Doubling(torch.nn.Conv2d):
    """A layer of another library: it pads by reflection, and convolves with twice its weight."""

    def forward(self, x):
        x = torch.nn.functional.pad(x, (1, 1, 1, 1), mode='reflect')
        return torch.nn.functional.conv2d(x, 2 * self.weight, self.bias)


def test_a_layer_from_outside_is_quantized_trained_and_folded():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), Doubling(4, 4, 3), torch.nn.Conv2d(4, 2, 1))
    mmgdrq.quantize(net, weight=dict(bits=4, range='minmax'), activation=dict(bits=8))
    assert [row.weight.bits for row in mmgdrq.state(net).plan] == [8, 4, 8]
    x = torch.randn(2, 3, 8, 8)
    net.train()(x).sum().backward()
    weight = 2 * net[1].weight.detach()
    step = weight.abs().amax((1, 2, 3), keepdim=True) / 8
    assert torch.allclose(net[1].weight_quantizer(weight), (weight / step).round().clamp(-8, 7) * step, atol=1e-6)
    net.eval()
    with torch.no_grad():
        assert torch.allclose(mmgdrq.fold(net, example=x)(x), net(x), atol=1e-5)
