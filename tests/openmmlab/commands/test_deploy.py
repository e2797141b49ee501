"""The way from a runner to a verified directory, on toy models."""

import logging
import sys

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

from mmgdrq.deploy import deployment, is_deployed, load_folded
from mmgdrq.errors import CheckpointError, ConfigError, ExportError
from mmgdrq.openmmlab.commands.deploy import deploy_runner
from tests.helpers.toy import ToyModel, toy_config, toy_runner
from tests.reliability.deploying import ToyClassifier

QUANT = dict(weight=dict(bits=2), activation=dict(bits=4))


@MODELS.register_module(force=True)
class ToyUp(ToyModel):
    """With a transposed convolution, whose weight is stored as codes beside its float parameter."""

    def __init__(self, channels: int = 8, data_preprocessor=None, init_cfg=None) -> None:
        super().__init__(channels, data_preprocessor, init_cfg)
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, inputs, labels=None, mode='tensor'):
        x = F.relu(self.bn1(self.conv1(inputs)))
        logits = self.head(F.relu(self.bn2(self.conv2(F.relu(self.up(x))))).mean((2, 3)))
        if mode == 'loss':
            return dict(loss=F.cross_entropy(logits, labels))
        return [dict(logits=row) for row in logits] if mode == 'predict' else logits


@MODELS.register_module(force=True)
class ToyOneByOne(ToyClassifier):
    """Its number of images is a constant in its graph; ``tests`` counts the batches that any copy of it has run."""

    tests = 0

    def extract_feat(self, inputs):
        features = super().extract_feat(inputs)
        return features.reshape(len(inputs), -1)

    def test_step(self, data):
        ToyOneByOne.tests += 1
        return super().test_step(data)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Work directory of a training of each model."""
    folder = tmp_path_factory.mktemp('trained')
    for kind in ('ToyModel', 'ToyUp', 'ToyOneByOne'):
        toy_runner(folder / kind, 1, QUANT, model=dict(type=kind)).train()
    return folder


@pytest.fixture
def runner_of(trained, tmp_path):
    """Kind of a model -> a new runner that loads its checkpoint."""
    from mmengine.runner import Runner

    def make(kind: str) -> Runner:
        checkpoint = str(trained / kind / 'epoch_1.pth')
        return Runner.from_cfg(toy_config(tmp_path / 'run', 1, QUANT, model=dict(type=kind), load_from=checkpoint))

    return make


def test_a_model_with_stored_weights(runner_of, tmp_path):
    runner = runner_of('ToyUp')
    report = deploy_runner(runner, str(tmp_path / 'out'), test=True)
    assert report.layers == 4
    assert report.metrics['folded'] == pytest.approx(report.metrics['quantized'], rel=1e-5)
    x = torch.randn(2, 3, 8, 8)
    expected = runner.model.eval()(x)
    assert torch.allclose(load_folded(runner.model, tmp_path / 'out')(x), expected, atol=1e-5)


def test_what_was_written_wrongly_replaces_nothing(runner_of, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    deploy_runner(runner_of('ToyUp'), str(out))
    earlier = (out / 'weights.safetensors').read_bytes()
    right = deployment.load_folded

    def wrong(*args):
        model = right(*args)
        model.head.weight.data += 1
        return model

    monkeypatch.setattr(deployment, 'load_folded', wrong)
    with pytest.raises(RuntimeError, match=r'head\.weight was not written as it is in memory'):
        deploy_runner(runner_of('ToyModel'), str(out))
    assert is_deployed(out)
    assert (out / 'weights.safetensors').read_bytes() == earlier
    assert not list(tmp_path.glob('.out*')), 'nothing half-written is left'


def test_the_float_graph_is_timed_without_further_checks(runner_of, tmp_path, monkeypatch):
    """It takes what the checked graph takes, so the sample images are run and sizes are tried for that one only."""
    pytest.importorskip('onnx', reason='onnx is not installed')
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    counts, out = [], str(tmp_path / 'out')
    for rounds in (0, 1):
        monkeypatch.setattr(ToyOneByOne, 'tests', 0)
        with pytest.warns(UserWarning, match='runs one input at a time') as warned:
            report = deploy_runner(runner_of('ToyOneByOne'), out, engines=['onnxruntime'], rounds=rounds)
        counts.append((ToyOneByOne.tests, sum('one input at a time' in str(w.message) for w in warned)))
    assert counts[0] == counts[1]
    assert report.graphs[0].speedup > 0


class Untouched:
    """In the place of a runner whose work must not begin."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.logger, self.cfg = model, logging.getLogger('untouched'), {}


REFUSALS = {
    'no batches': (dict(batches=0), ConfigError, r'--batches 0: expected 1 or more'),
    'negative batches': (dict(batches=-1), ConfigError, r'--batches -1: expected 1 or more'),
    'negative rounds': (dict(rounds=-1), ConfigError, r'--rounds -1: expected 0'),
    'float weights alone': (dict(float_checkpoint='x.pth'), ConfigError, '--float: needs --evaluate'),
    'a place that is taken': (dict(out='taken'), CheckpointError, 'is not a deployed model'),
    'no dense parts': (dict(engines=['openvino']), ExportError, 'ToyModel has neither rpn_head'),
}


@pytest.mark.parametrize('case', REFUSALS)
def test_it_is_refused_before_the_work(tmp_path, monkeypatch, case):
    options, error, match = REFUSALS[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken/file').touch()
    with pytest.raises(error, match=match):
        deploy_runner(Untouched(ToyModel()), **{'out': 'out', **options})
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('package', 'profile'), [('onnx', 'openvino'), ('openvino', 'openvino'), ('onnxruntime', 'tensorrt')]
)
def test_a_missing_package_is_reported_before_the_work(tmp_path, monkeypatch, package, profile):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=f'pip install {package}`'):
        deploy_runner(Untouched(ToyClassifier()), str(tmp_path / 'out'), engines=[profile])


def test_an_empty_directory_is_filled(runner_of, tmp_path):
    (tmp_path / 'out').mkdir()
    deploy_runner(runner_of('ToyModel'), str(tmp_path / 'out'))
    assert is_deployed(tmp_path / 'out')
