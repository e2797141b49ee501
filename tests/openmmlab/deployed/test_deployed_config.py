"""``mmgdrq.load_deployed`` builds what the runner of the same config has trained, however the config says it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier, ResNet_CIFAR

import mmgdrq
from mmgdrq.deploy import save_folded

CONFIG = Path(__file__).resolve().parents[3] / 'configs/gdrq/resnet18_digits.py'
QUANT = dict(weight=dict(bits=4), activation=dict(bits=8))
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


class LoadsAtOnce:
    """Would load weights while it is built."""

    def __init__(self, *args, pretrained=None, teacher_ckpt=None, init_cfg=None, **kwargs) -> None:
        assert pretrained is teacher_ckpt is init_cfg is None, 'no weights are loaded'
        super().__init__(*args, **kwargs)


@MODELS.register_module(force=True)
class ClassifierLoadsAtOnce(LoadsAtOnce, ImageClassifier):
    pass


@MODELS.register_module(force=True)
class BackboneLoadsAtOnce(LoadsAtOnce, ResNet_CIFAR):
    pass


def config_of(tmp_path, hook=None) -> Config:
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'run'), tmp_path.name
    cfg.model.backbone.update(base_channels=8, stem_channels=8)
    cfg.model.head.in_channels = 64
    cfg.custom_hooks = [dict(type='mmgdrq.GDRQHook', **(QUANT if hook is None else hook))]
    return cfg


def deploy(cfg, out: Path):
    """Build the model with a runner, train it a little, and write it; the folded model."""
    runner = Runner.from_cfg(cfg)
    runner.call_hook('before_run')
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(2):
            runner.model.train()(x, mode='tensor')
        folded = mmgdrq.fold(runner.model.eval(), example=lambda model: model(x, mode='tensor'))
    save_folded(folded, out, runner.cfg.pretty_text)
    return folded


def assert_same(folded, path: Path):
    """The deployed model computes what the folded one of the runner computes."""
    model = mmgdrq.load_deployed(path, engine='torch')
    with torch.no_grad():
        expected = folded.test_step(pseudo_collate([model.pipeline(IMAGE)]))[0].pred_score
    assert torch.equal(model(IMAGE).pred_score, expected)


@pytest.mark.parametrize('where', ['model', 'backbone'])
def test_no_weights_of_the_training_are_needed(tmp_path, where):
    """Those that the config starts from may be gone; they would be replaced at once."""
    cfg = config_of(tmp_path)
    folded = deploy(cfg, tmp_path / 'out')
    cfg.model.type, cfg.model.backbone.type = 'ClassifierLoadsAtOnce', 'BackboneLoadsAtOnce'
    part = cfg.model if where == 'model' else cfg.model.backbone
    part.teacher_ckpt, part.pretrained = 'no/teacher.pth', 'no/file.pth'
    part.init_cfg = dict(type='Pretrained', checkpoint='no/file.pth')
    save_folded(folded, tmp_path / 'out', cfg.pretty_text)
    assert_same(folded, tmp_path / 'out')


def test_a_preprocessor_beside_the_model(tmp_path):
    cfg = config_of(tmp_path)
    assert 'data_preprocessor' not in cfg.model
    assert_same(deploy(cfg, tmp_path / 'out'), tmp_path / 'out')
