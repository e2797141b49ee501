"""Quantized checkpoints where a model is built and loaded without hooks."""

import copy

import pytest
import torch
from mmdet.apis import init_detector
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import BaseModule, BaseTTAModel
from mmengine.runner import checkpoint, load_checkpoint
from torch import nn

import mmgdrq
from mmgdrq.errors import CheckpointError
from tests.helpers.toy import ToyModel, toy_runner

HOOK = dict(weight=dict(bits=3), rules=[dict(pattern='conv1', skip=True)])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run with GDRQHook, its checkpoint in ``path``."""
    folder = tmp_path_factory.mktemp('trained')
    runner = toy_runner(folder, 1, HOOK)
    runner.train()
    runner.path = str(folder / 'epoch_1.pth')
    return runner


def of_module(path: str, tmp_path) -> str:
    """The checkpoint with the prefix of a wrapped model."""
    content = torch.load(path)
    content['state_dict'] = {f'module.{key}': value for key, value in content['state_dict'].items()}
    torch.save(content, tmp_path / 'wrapped.pth')
    return str(tmp_path / 'wrapped.pth')


def test_a_float_model_refuses_it(trained, tmp_path):
    for path in (trained.path, of_module(trained.path, tmp_path)):
        with pytest.raises(CheckpointError, match=r"'conv2' .* is float.*mmgdrq\.Quantized.*mmgdrq\.quantize\(model"):
            load_checkpoint(ToyModel(), path)


class Averaged(BaseTTAModel):
    """Any model of test time augmentation."""

    def merge_preds(self, data_samples_list):
        return data_samples_list


@pytest.mark.parametrize('wrap', [lambda model: Averaged(module=model), nn.DataParallel], ids=['tta', 'parallel'])
def test_a_wrapped_float_model_refuses_it(trained, wrap):
    with pytest.raises(CheckpointError, match='is float'):
        checkpoint.load_state_dict(wrap(ToyModel()), torch.load(trained.path)['state_dict'])


def test_a_runner_without_the_hook_refuses_it(trained, tmp_path):
    with pytest.raises(CheckpointError, match='use the config it was trained with'):
        toy_runner(tmp_path, load_from=trained.path).train()


def test_a_model_that_was_quantized_in_part_refuses_it(trained):
    class Registered(ToyModel):
        def __init__(self):
            super().__init__()
            self.head = mmgdrq.Linear(8, 4)

    with pytest.raises(CheckpointError, match=r"'conv2' .* is float"):
        load_checkpoint(Registered(), trained.path)


def test_what_the_message_says_loads_it(trained, tmp_path):
    expected = trained.model.eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    built = mmgdrq.build_quantized('ToyModel', quant=HOOK)
    for model in (built, mmgdrq.quantize(ToyModel(), **HOOK)):
        for path in (trained.path, of_module(trained.path, tmp_path)):
            load_checkpoint(model, path)
            assert torch.equal(model.eval()(images), expected(images))


class OwnQuantizer(nn.Module):
    """Another project's quantized layer, with our name for its part."""

    def __init__(self):
        super().__init__()
        self.conv, self.weight_quantizer = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)


def test_quantizers_of_others_load_as_before():
    net, other = (nn.Sequential(OwnQuantizer()) for _ in range(2))
    checkpoint.load_state_dict(other, net.state_dict(), strict=True)
    assert torch.equal(other[0].conv.weight, net[0].conv.weight)


def test_float_checkpoints_load_as_before(tmp_path):
    model = ToyModel()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'float.pth')
    for other in (ToyModel(), mmgdrq.quantize(ToyModel())):
        load_checkpoint(other, str(tmp_path / 'float.pth'))
        assert torch.equal(other.conv2.weight, model.conv2.weight)


class Holder(BaseModule):
    """A float model that starts from a part of the toy model."""

    def __init__(self, init_cfg) -> None:
        super().__init__()
        self.stem = Stem(init_cfg)


class Stem(BaseModule):
    def __init__(self, init_cfg) -> None:
        super().__init__(init_cfg)
        self.weight = nn.Parameter(torch.zeros(8, 8, 3, 3))


@pytest.mark.parametrize('prefix', [dict(prefix='conv2.'), {}], ids=['part', 'whole'])
def test_init_cfg_starts_from_the_weights_alone(trained, prefix):
    """A backbone for another training, quantized or not."""
    if prefix:
        model = Holder(dict(type='Pretrained', checkpoint=trained.path, **prefix))
        found = model.stem
    else:
        model = ToyModel(init_cfg=dict(type='Pretrained', checkpoint=trained.path))
        found = model.conv2
    model.init_weights()
    assert torch.equal(found.weight, torch.load(trained.path)['state_dict']['conv2.weight'])
    with pytest.raises(CheckpointError):  # and nothing stays switched off
        load_checkpoint(model, trained.path)


def test_revised_keys_of_a_backbone(trained):
    """Layers that are found under another name are float all the same."""
    net = nn.ModuleDict({'second': nn.Conv2d(8, 8, 3, bias=False)})
    with pytest.raises(CheckpointError, match=r"'second' .* is float"):
        load_checkpoint(net, trained.path, revise_keys=[(r'^conv2\.', 'second.')])


@pytest.mark.parametrize('kind', ['name', 'class'])
def test_init_detector(tmp_path, kind):
    """The config with the two lines, a checkpoint of its training, and the example of README."""
    register_all_modules()
    quant = dict(weight=dict(bits=2), activation=dict(bits=4))
    hook = dict(type='mmgdrq.GDRQHook', **quant)
    model = dict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(type='ResNet', depth=18, base_channels=4, norm_cfg=dict(type='BN')),
        neck=dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=5),
        bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1),
    )
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
    data = dict(dataset=dict(type='CocoDataset', pipeline=pipeline))
    config = Config(dict(model=model, custom_hooks=[hook], default_scope='mmdet', test_dataloader=data))
    source = mmgdrq.quantize(MMDET_MODELS.build(copy.deepcopy(config.model)), **quant)
    source.train()(torch.rand(1, 3, 64, 64))
    path = tmp_path / 'checkpoint.pth'
    torch.save(dict(state_dict=source.state_dict(), meta=dict(dataset_meta=dict(classes=('a', 'b')))), path)
    with pytest.raises(CheckpointError, match=r'init_detector.*mmgdrq\.Quantized'):
        init_detector(copy.deepcopy(config), str(path), device='cpu')
    base = config.model.type if kind == 'name' else MMDET_MODELS.get(config.model.type)
    config.model.update(type='mmgdrq.Quantized', base_type=base, quant=quant)
    detector = init_detector(config, str(path), device='cpu')
    images = torch.rand(1, 3, 64, 64)
    for found, expected in zip(detector(images)[0], source.eval()(images)[0]):
        assert torch.equal(found, expected)
