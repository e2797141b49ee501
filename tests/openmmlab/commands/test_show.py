"""tools/test.py --show-dir: every OpenMMLab package writes its pictures."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData

from mmgdrq.errors import ConfigError
from mmgdrq.openmmlab.commands import test
from tests.helpers import toy  # noqa: F401 (registers the model)

ROOT = Path(__file__).resolve().parents[3]
META = dict(classes=('a', 'b'), palette=[(255, 0, 0), (0, 255, 0)])
CONFIGS = {'mmdet': 'faster_rcnn_r18_fpn_digits', 'mmseg': 'fcn_r18_digits', 'mmpretrain': 'resnet18_digits'}


def sample_of(scope: str, path: Path):
    """What a model of the package predicts for an image."""
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample

        boxes = InstanceData(bboxes=torch.tensor([[2.0, 2, 20, 20]]), labels=torch.tensor([0]), scores=torch.ones(1))
        return DetDataSample(metainfo=dict(img_path=str(path)), pred_instances=boxes)
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample

        pixels = PixelData(data=torch.zeros(1, 32, 32, dtype=torch.int64))
        return SegDataSample(metainfo=dict(img_path=str(path)), pred_sem_seg=pixels)
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=dict(img_path=str(path))).set_pred_label(0).set_pred_score(torch.tensor([0.9, 0.1]))


def draw_predictions(cfg, **options) -> None:
    test.draw_predictions(cfg, argparse.Namespace(**{'show': False, 'show_dir': None, 'wait_time': 0, **options}))


def config_of(scope: str, work_dir: Path) -> Config:
    cfg = Config.fromfile(ROOT / f'configs/gdrq/{CONFIGS[scope]}.py')
    cfg.work_dir, cfg.experiment_name = str(work_dir), f'show_{scope}_{work_dir.parent.name}'
    cfg.model, cfg.data_preprocessor = dict(type='mmengine.ToyModel'), None
    if cfg.get('visualizer'):
        cfg.visualizer.name = cfg.experiment_name
    return cfg


@pytest.mark.parametrize('scope', CONFIGS)
def test_every_image_is_drawn(tmp_path, monkeypatch, scope):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Runner, '_log_env', lambda *_: None)  # it asks compilers for their versions, for seconds
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for name in ('one', 'two'):
        cv2.imwrite(f'{name}.jpg', image)
    cfg = config_of(scope, tmp_path / 'run')
    draw_predictions(cfg, show_dir='pictures')
    runner = Runner.from_cfg(cfg)
    runner.visualizer.dataset_meta = META
    hook = next(hook for hook in runner.hooks if 'Visualization' in type(hook).__name__)
    batch = dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)])
    for index, name in enumerate(('one', 'two')):
        outputs = [sample_of(scope, tmp_path / f'{name}.jpg')]
        hook.after_test_iter(runner, index, batch, outputs)
    drawn = [path for path in (tmp_path / 'pictures').rglob('*') if path.suffix in ('.png', '.jpg')]
    assert len(drawn) == 2
    assert all(cv2.imread(str(path)) is not None for path in drawn)


def test_a_config_of_another_package_without_a_hook(tmp_path):
    cfg = config_of('mmseg', tmp_path)
    cfg.default_scope, cfg.default_hooks = 'mmengine', {}
    with pytest.raises(ConfigError, match=r'no default_hooks\.visualization'):
        draw_predictions(cfg, show_dir='pictures')


def test_mmseg_does_not_write_what_it_shows(tmp_path):
    with pytest.raises(ConfigError, match='either shows pictures or writes them'):
        draw_predictions(config_of('mmseg', tmp_path), show_dir='pictures', show=True)
