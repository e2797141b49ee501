"""Every shipped config trains a few iterations, on made-up data in the format of its data set or on real digits.

By default one config of every model and format; ``make test-zoo`` (``-m zoo``) tries them all.
"""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

import mmgdrq
from mmgdrq.layers import is_quantized
from tests.helpers import made_up
from tests.integration.test_zoo import TWO_LINES

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / 'configs/gdrq').glob('*.py'))
BITS = re.compile(r'_w(\d)a(\d)$')
OF_A_MODEL = re.compile(
    r'(_r50|_vgg16|^resnet50_in1k|bn_cifar10|_r50_cityscapes|_vgg16_cityscapes|^pspnet.*)_w2a4$|bccd'
)
SIZES = {'ssd300': 300, 'ssd512': 512, 'vgg16bn_in1k': 224, 'cifar10': 32}
"""Side of the images, where 64 pixels are not right for the model or its data."""


def is_default(path: Path) -> bool:
    return bool(OF_A_MODEL.search(path.stem)) and 'ssd512' not in path.stem


def parameters() -> list:
    made_up_data = [path for path in CONFIGS if 'digits' not in path.stem]
    return [pytest.param(p, id=p.stem, marks=() if is_default(p) else pytest.mark.zoo) for p in made_up_data]


def hooks_of(cfg: Config) -> list[dict]:
    return [hook for hook in cfg.get('custom_hooks') or [] if hook['type'] == 'mmgdrq.GDRQHook']


def shrink(pipeline: list, size: int) -> None:
    """Make the images of a pipeline small, in place."""
    for step in pipeline:
        for key in ('scale', 'crop_size', 'size'):
            if key in step:
                step[key] = size if isinstance(step[key], int) else (size, size)
        if step['type'] == 'RandomResize':
            step.update(scale=(2 * size, size), ratio_range=(1.0, 2.0))  # not smaller than the crop


def pipelines(dataset: dict) -> list[list]:
    parts = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
    return [dataset['pipeline']] if 'pipeline' in dataset else [found for part in parts for found in pipelines(part)]


def small(cfg: Config, work_dir: Path) -> Config:
    """The config for one epoch or iteration of a few images, without validation, checkpoints and downloads."""
    cfg.work_dir, cfg.experiment_name = str(work_dir), f'config_{work_dir.name}'
    cfg.load_from, cfg.randomness = None, dict(seed=0)
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    by_iter = cfg.train_cfg.get('type') == 'IterBasedTrainLoop'
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=1) if by_iter else dict(by_epoch=True, max_epochs=1)
    for key in ('dataloader', 'cfg', 'evaluator'):
        cfg[f'val_{key}'] = cfg[f'test_{key}'] = None
    cfg.param_scheduler = None
    for hook in ('checkpoint', 'visualization'):
        cfg.default_hooks.pop(hook, None)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=-1, save_last=False)
    cfg.model.backbone.init_cfg = None
    if 'pretrained' in cfg.model:
        cfg.model.pretrained = None
    for part in cfg.model.values():
        if isinstance(part, dict) and part.get('norm_cfg', {}).get('type') == 'SyncBN':
            part.norm_cfg.type = 'BN'
    return cfg


def train(cfg: Config) -> Runner:
    """Train as the tools do; the loss is finite and the weights move."""
    runner = Runner.from_cfg(cfg)
    weights = {name: p.detach().clone() for name, p in runner.model.named_parameters() if p.dim() > 1}
    runner.train()
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
    assert any(not p.equal(weights[name]) for name, p in runner.model.named_parameters() if name in weights)
    return runner


@pytest.mark.parametrize('path', parameters())
def test_config_trains_on_data_of_its_format(path, tmp_path, monkeypatch):
    monkeypatch.setattr('mmpretrain.datasets.cifar.check_md5', lambda *_: True)
    cfg = small(Config.fromfile(path), tmp_path)
    dataset = cfg.train_dataloader.dataset
    if dataset.type == 'RepeatDataset':
        dataset.times = 1
    made_up.write(dataset, tmp_path / 'data')
    size = next((size for name, size in SIZES.items() if name in path.stem), 64)
    for pipeline in pipelines(dataset):
        shrink(pipeline, size)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (size, size)
    runner = train(cfg)
    bits = BITS.search(path.stem)
    assert len(hooks_of(cfg)) == bool(bits)
    if bits:
        check_plan(runner.model, *map(int, bits.groups()))
        page = (ROOT / 'docs/plans' / f'{BITS.sub("", path.stem)}.md').read_text()
        assert f'- `{path.stem}`: {mmgdrq.state(runner.model).plan.summary()}' in page, 'python dev/list_configs.py'


def check_plan(model, weight: int, activation: int) -> None:
    """All layers are quantized: those that read the image or predict with 8 bits, all others as the name says."""
    plan = mmgdrq.state(model).plan
    assert len(plan.quantized) == len(plan)
    reasons = {row.reason.partition(' (')[0] for row in plan}
    at_8_bits = {'reads the image', 'prediction layer'}
    assert at_8_bits <= reasons <= {*at_8_bits, ''}
    for row in plan:
        assert (row.weight.bits, row.activation.bits) == ((8, 8) if row.reason else (weight, activation)), row.name
        layer = model.get_submodule(row.name)
        assert is_quantized(layer)
        assert layer.activation_quantizer.threshold > 0, f'{row.name} has no range'
    inner, weights = (sum(row.parameters for row in rows) for rows in ([r for r in plan if not r.reason], plan))
    assert inner > 0.5 * weights, 'most weights have the bits of the name'


@pytest.fixture(scope='module')
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('data') / 'digits'
    sizes = ('--train', '4', '--val', '1', '--test', '1', '--workers', '1')
    sizes += ('--crops-train', '4', '--crops-val', '1', '--crops-test', '1')
    subprocess.run([sys.executable, ROOT / 'demo/make_digits.py', '--out', folder, *sizes], check=True)
    return folder


@pytest.mark.parametrize('path', [path for path in CONFIGS if 'digits' in path.stem], ids=lambda path: path.stem)
def test_config_trains_quantized_on_digits(path, digits, tmp_path):
    """The float baselines with the two lines of the README."""
    if not hooks_of(Config.fromfile(path)):
        quantized = tmp_path / f'{path.stem}_w2a4.py'
        quantized.write_text(f"_base_ = '{path}'{TWO_LINES}")
        path = quantized
    cfg = small(Config.fromfile(path), tmp_path)
    cfg.train_dataloader.dataset.data_root = str(digits)
    runner = train(cfg)
    assert runner.iter >= 2, 'a few iterations'
    check_plan(runner.model, 2, 4)


@pytest.mark.parametrize('path', [path for path in CONFIGS if BITS.search(path.stem)], ids=lambda path: path.stem)
def test_config_starts_from_float_weights(path):
    cfg = Config.fromfile(path)
    assert cfg.load_from
    assert str(cfg.load_from).startswith(('https://download.openmmlab.com/', 'work_dirs/')), cfg.load_from
    assert cfg.train_dataloader.batch_size > 0
    (hook,) = hooks_of(cfg)
    weight, activation = map(int, BITS.search(path.stem).groups())
    quant = cfg.model.get('quant') or hook
    assert (quant.weight.bits, quant.activation.bits) == (weight, activation)
    stages = hook.get('stages')
    if stages:
        by_iter = 'IterBased' in str(cfg.train_cfg.get('type', ''))
        assert by_iter != stages.get('by_epoch', True)


def test_coco_config_starts_from_float_weights():
    cfg = Config.fromfile(next(path for path in CONFIGS if path.stem == 'faster_rcnn_r50_w2a4'))
    assert 'faster_rcnn_r50_fpn_1x_coco' in cfg.load_from
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'
    assert cfg.custom_hooks[0].stages == dict(reshape=0, quantize=1)
