"""Every shipped config builds, is quantized and takes a training step on made-up data."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmgdrq
from tests.test_zoo import detection

CONFIGS = sorted((Path(__file__).resolve().parent.parent / 'configs/gdrq').glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_takes_a_training_step(path):
    torch.manual_seed(0)
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook['type'] == 'mmgdrq.GDRQHook']
    assert bool(hooks) == ('w2a4' in path.stem or 'reshape' in path.stem)
    for hook in hooks:
        mmgdrq.quantize(model, hook.get('weight'), hook.get('activation'), hook.get('rules', ()))
        bits = {row.weight.bits for row in model.gdrq_plan.quantized}
        assert bits == {2, 8}
        assert len(model.gdrq_plan.quantized) == len(model.gdrq_plan)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    batch = dict(inputs=list(images), data_samples=[detection(), detection()])
    losses = model.train()(**model.data_preprocessor(batch, training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_coco_config_starts_from_float_weights():
    cfg = Config.fromfile(next(path for path in CONFIGS if path.stem == 'faster_rcnn_r50_w2a4'))
    assert 'faster_rcnn_r50_fpn_1x_coco' in cfg.load_from
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'
    assert cfg.custom_hooks[0].stages == dict(reshape=0, quantize=1)
