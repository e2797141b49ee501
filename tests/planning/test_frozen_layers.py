"""Layers that a model freezes when it starts to train have 8 bits from the beginning."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmgdrq
from mmgdrq.planning.frozen_layers import frozen_layers
from mmgdrq.planning.train_mode import in_training
from tests.helpers.plans import conv, tree
from tests.helpers.toy import ToyModel, toy_runner

BACKBONES = {
    'mmdet CSPDarknet': (
        dict(type='mmdet.CSPDarknet', widen_factor=0.125, deepen_factor=0.1, frozen_stages=1),
        ('stem', 'stage1'),
    ),
    'mmdet MobileNetV2': (
        dict(type='mmdet.MobileNetV2', widen_factor=0.25, frozen_stages=2),
        ('conv1', 'layer1', 'layer2'),
    ),
    'mmpretrain Swin': (
        dict(
            type='mmpretrain.SwinTransformer',
            arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]),
            img_size=32,
            window_size=2,
            frozen_stages=0,
        ),
        ('patch_embed', 'stages.0'),
    ),
}


class Net(nn.Module):
    """Freezes its first stage in ``train``, where it also drops or makes a cache, as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(conv(3, 8), nn.Sequential(conv(8, 8), nn.BatchNorm2d(8)), conv(8, 8))
        self.head = conv(8, 2)

    def train(self, mode=True):
        super().train(mode)
        self.stages[1].requires_grad_(False)
        self.stages[1].eval()
        if hasattr(self, 'cache'):
            del self.cache
        else:
            self.cache = torch.zeros(1)
        return self


@MODELS.register_module(force=True)
class FreezingToy(ToyModel):
    def train(self, mode=True):
        super().train(mode)
        self.conv2.requires_grad_(False)
        return self


def state(model):
    modes = [(name, module.training, sorted(vars(module))) for name, module in model.named_modules()]
    return modes, [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]


def frozen(plan):
    return {row.name for row in plan if row.reason.startswith('frozen')}


@pytest.mark.parametrize('name', BACKBONES)
def test_frozen_stages_of_the_zoos(name):
    init_default_scope(name.split()[0])
    config, stages = BACKBONES[name]
    model = tree(backbone=MODELS.build(config), head=tree(fc=nn.Linear(8, 2)))
    before = state(model)
    plan = mmgdrq.plan(model)
    assert state(model) == before
    first = next(row.name for row in plan)
    below = tuple(f'backbone.{stage}.' for stage in stages)
    assert frozen(plan) | {first} == {row.name for row in plan if row.name.startswith(below)}
    assert {row.weight.bits for row in plan if row.name.startswith(below)} == {8}
    assert str(mmgdrq.plan(model.train())) == str(plan), 'whether it trains already or not'


@pytest.mark.parametrize('ready', [lambda net: net, Net.train, Net.eval, lambda net: net.train().train()])
@pytest.mark.parametrize(
    'wrap', [lambda net: net, lambda net: nn.ModuleDict(dict(a=net)), lambda net: nn.Sequential(net)]
)
def test_a_plan_leaves_the_model_as_it_is(ready, wrap):
    model = wrap(ready(Net()))
    before = state(model)
    plan = mmgdrq.plan(model)
    assert state(model) == before
    assert {name.rpartition('stages')[2] for name in frozen(plan)} == {'.1.0'}


def test_what_a_model_does_in_train_it_may_undo():
    class Merging(Net):
        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    model = Merging().eval()
    mmgdrq.plan(model)
    assert model.merged
    mmgdrq.plan(model.train())
    assert not model.merged


def test_modes_of_single_modules_come_back():
    model = Net()
    model.head.eval()
    model.stages[2].weight.requires_grad_(False)
    before = state(model)
    with in_training(model):
        assert model.head.training
    assert state(model) == before


def test_scripted_and_lazy_parts_are_put_back():
    model = tree(a=Net(), scripted=torch.jit.script(nn.Sequential(nn.Dropout())), lazy=nn.LazyLinear(3))
    model.scripted.eval()
    before = state(model)
    with in_training(model):
        assert model.scripted.training
    assert state(model) == before


def test_a_model_whose_train_raises_is_put_back():
    class Stubborn(Net):
        def train(self, mode=True):
            super().train(mode)
            raise NotImplementedError('cannot train')

    model = Stubborn()
    before = state(model)
    with pytest.raises(NotImplementedError, match='cannot train'):
        mmgdrq.plan(model)
    assert state(model) == before


def test_all_that_quantize_agree(tmp_path):
    runner = toy_runner(tmp_path, hook={}, model=dict(type='FreezingToy'))
    runner.call_hook('before_run')
    built = MODELS.build(dict(type='mmgdrq.Quantized', base_type='FreezingToy'))
    for model in (runner.model, built, mmgdrq.quantize(FreezingToy())):
        assert frozen(mmgdrq.state(model).plan) == {'conv2'}
        assert model.conv2.weight_quantizer.spec.bits == 8
        assert model.conv2.weight.requires_grad


def test_a_layer_whose_bias_alone_is_trained_is_frozen():
    layers = {'0': nn.Conv2d(3, 4, 1), '1': nn.Conv2d(4, 4, 1), '2': nn.Conv2d(4, 4, 1)}
    layers['1'].weight.requires_grad_(False)
    assert frozen_layers(layers) == ['1']
