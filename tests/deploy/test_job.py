"""The way from a runner to a verified directory, on toy models."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

from mmgdrq.deploy import is_deployed, job, load_folded
from tests.toy import ToyModel, toy_config, toy_runner

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


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Work directory of a training of each model."""
    folder = tmp_path_factory.mktemp('trained')
    for kind in ('ToyModel', 'ToyUp'):
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
    report = job.deploy(runner, str(tmp_path / 'out'), test=True)
    assert report.layers == 4
    assert report.metrics['folded'] == pytest.approx(report.metrics['quantized'], rel=1e-5)
    x = torch.randn(2, 3, 8, 8)
    expected = runner.model.eval()(x)
    assert torch.allclose(load_folded(runner.model, tmp_path / 'out')(x), expected, atol=1e-5)


def test_what_was_written_wrongly_replaces_nothing(runner_of, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    job.deploy(runner_of('ToyUp'), str(out))
    earlier = (out / 'weights.safetensors').read_bytes()
    right = job.load_folded

    def wrong(*args):
        model = right(*args)
        model.head.weight.data += 1
        return model

    monkeypatch.setattr(job, 'load_folded', wrong)
    with pytest.raises(RuntimeError, match=r'head\.weight was not written as it is in memory'):
        job.deploy(runner_of('ToyModel'), str(out))
    assert is_deployed(out)
    assert (out / 'weights.safetensors').read_bytes() == earlier
    assert not list(tmp_path.glob('.out*')), 'nothing half-written is left'
