"""Every shipped config builds, is quantized as it says, and takes a training step on made-up data.

By default one config of every model; ``make test-zoo`` (``-m zoo``) tries them all.
"""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmgdrq
from tests.test_zoo import SAMPLES

CONFIGS = sorted((Path(__file__).resolve().parent.parent / 'configs/gdrq').glob('*.py'))
BITS = re.compile(r'_w(\d)a(\d)$')
OF_A_MODEL = re.compile(r'(_r50|_vgg16|^resnet50_in1k|bn_cifar10|_r50_cityscapes|_vgg16_cityscapes)_w2a4$|digits')
SIZES = {'ssd': 300, 'vgg16bn_in1k': 224}
"""Side of the images, where 64 pixels are too few for the model."""


def is_default(path: Path) -> bool:
    return bool(OF_A_MODEL.search(path.stem)) and 'ssd512' not in path.stem


def parameters() -> list:
    return [pytest.param(path, id=path.stem, marks=() if is_default(path) else pytest.mark.zoo) for path in CONFIGS]


def hooks_of(cfg: Config) -> list[dict]:
    return [hook for hook in cfg.get('custom_hooks') or [] if hook['type'] == 'mmgdrq.GDRQHook']


def float_model(cfg: Config):
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    if 'pretrained' in cfg.model:
        cfg.model.pretrained = None
    for part in cfg.model.values():
        if isinstance(part, dict) and part.get('norm_cfg', {}).get('type') == 'SyncBN':
            part.norm_cfg.type = 'BN'
    model = MODELS.build(cfg.model)
    for module in model.modules():
        if type(module).__name__ == 'L2Norm':  # of SSD; mmdet leaves its weight uninitialized until init_weights
            module.weight.data.fill_(20.0)
    return model


def batch_for(cfg: Config, size: int) -> dict:
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (size, size)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    return dict(inputs=list(images), data_samples=[SAMPLES[cfg.default_scope](size) for _ in range(2)])


@pytest.mark.parametrize('path', parameters())
def test_config_takes_a_training_step(path):
    torch.manual_seed(0)
    cfg = Config.fromfile(path)
    size = next((size for name, size in SIZES.items() if name in path.stem), 64)
    batch = batch_for(cfg, size)
    model = float_model(cfg)
    hooks = hooks_of(cfg)
    bits = BITS.search(path.stem)
    if bits or 'reshape' in path.stem:
        assert len(hooks) == 1
    for hook in hooks:
        mmgdrq.quantize(model, hook.get('weight'), hook.get('activation'), hook.get('rules', ()))
        check_plan(model.gdrq_plan, *map(int, bits.groups()) if bits else (2, 4))
    losses = model.train()(**model.data_preprocessor(batch, training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def check_plan(plan, weight: int, activation: int) -> None:
    """All layers are quantized: those that read the image or predict with 8 bits, all others as the name says."""
    assert len(plan.quantized) == len(plan)
    reasons = {row.reason for row in plan}
    assert {'reads the image', 'prediction layer'} <= reasons <= {'reads the image', 'prediction layer', ''}
    for row in plan:
        assert (row.weight.bits, row.activation.bits) == ((8, 8) if row.reason else (weight, activation)), row.name
    assert sum(not row.reason for row in plan) > 0.6 * len(plan)


@pytest.mark.parametrize('path', [path for path in CONFIGS if BITS.search(path.stem)], ids=lambda path: path.stem)
def test_config_starts_from_float_weights(path):
    cfg = Config.fromfile(path)
    assert cfg.load_from
    assert str(cfg.load_from).startswith(('https://download.openmmlab.com/', 'work_dirs/')), cfg.load_from
    assert cfg.train_dataloader.batch_size > 0
    (hook,) = hooks_of(cfg)
    weight, activation = map(int, BITS.search(path.stem).groups())
    assert (hook.weight.bits, hook.activation.bits) == (weight, activation)
    stages = hook.get('stages')
    if stages:
        by_iter = 'IterBased' in str(cfg.train_cfg.get('type', ''))
        assert by_iter != stages.get('by_epoch', True)


def test_coco_config_starts_from_float_weights():
    cfg = Config.fromfile(next(path for path in CONFIGS if path.stem == 'faster_rcnn_r50_w2a4'))
    assert 'faster_rcnn_r50_fpn_1x_coco' in cfg.load_from
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'
    assert cfg.custom_hooks[0].stages == dict(reshape=0, quantize=1)
