"""The float model beside a quantized one."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmgdrq.errors import CheckpointError, ConfigError
from mmgdrq.openmmlab.deployed.evaluation import load_float_model

CONFIG = Path(__file__).resolve().parents[3] / 'configs/gdrq/resnet18_digits.py'
QUANT = dict(weight=dict(bits=2), activation=dict(bits=4))


@pytest.fixture
def cfg():
    config = Config.fromfile(CONFIG)
    config.model.backbone.update(base_channels=8, stem_channels=8)
    config.model.head.in_channels = 64
    init_default_scope(config.default_scope)
    return config


@pytest.fixture
def weights(cfg, tmp_path):
    file = tmp_path / 'float.pth'
    torch.save(MODELS.build(cfg.model).state_dict(), file)
    return str(file)


@pytest.mark.parametrize('built', [False, True])
def test_it_is_the_model_that_a_runner_builds(cfg, weights, built):
    expected = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).eval()
    expected.load_state_dict(torch.load(weights))
    if built:
        cfg.model = dict(cfg.model, type='mmgdrq.Quantized', base_type=cfg.model.type, quant=QUANT)
    model, x = load_float_model(cfg, weights), dict(inputs=[torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)])
    inputs = [m.data_preprocessor(dict(x), False)['inputs'] for m in (model, expected)]
    assert torch.equal(*inputs)
    assert float(inputs[0].max()) < 10, 'normalized'
    assert torch.equal(*[m(inputs[0], mode='tensor')[0] for m in (model, expected)])


def test_weights_that_training_started_from_are_not_needed(cfg, weights):
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='no/file.pth')
    cfg.model.pretrained = 'no/file.pth'
    model = load_float_model(cfg, weights)
    model.init_weights()
    assert not isinstance(model.init_cfg, dict)


def test_a_config_without_a_float_model_is_refused(cfg, weights):
    cfg.model.backbone.conv_cfg = dict(type='mmgdrq.Conv2d', **QUANT)
    with pytest.raises(ConfigError, match='by conv_cfg'):
        load_float_model(cfg, weights)


def test_other_weights_are_refused(cfg, weights):
    cfg.model.head.num_classes = 7
    with pytest.raises(CheckpointError, match='does not fit the float model'):
        load_float_model(cfg, weights)
