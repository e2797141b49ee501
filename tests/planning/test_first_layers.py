"""Which layers read the image: by channels and names, or by what they read in a forward pass."""

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.errors import ConfigError
from mmgdrq.planning.first_layers import image_layers
from tests.helpers.plans import at_eight, conv, rows, tree

CHANNELS, TRACED = 'reads the image (by channels)', 'reads the input (traced)'


def reasons(model, **quant) -> dict:
    return {name: row.reason for name, row in rows(model, **quant).items() if row.reason}


def two_stems(one: int, two: int, **names):
    first, second = names.get('names', ('rgb', 'depth'))
    streams = {first: tree(conv1=conv(one, 8)), second: tree(conv1=conv(two, 8))}
    return tree(**streams, fusion=conv(8, 8), head=tree(fc=nn.Linear(8, 2)))


@pytest.mark.parametrize(('one', 'two'), [(3, 1), (1, 3), (3, 2), (3, 3), (4, 4), (4, 1)])
def test_a_second_stream_has_a_stem_of_its_own(one, two):
    assert at_eight(two_stems(one, two)) == {'rgb.conv1', 'depth.conv1', 'head.fc'}
    whole = dict(backbone=tree(conv1=conv(one, 8)), backbone_depth=tree(conv1=conv(two, 8), conv2=conv(8, 8)))
    assert at_eight(tree(**whole, head=tree(fc=nn.Linear(8, 2)))) == {
        'backbone.conv1',
        'backbone_depth.conv1',
        'head.fc',
    }
    flat = tree(stem_rgb=conv(one, 8), stem_depth=conv(two, 8), body=conv(8, 8), head=tree(fc=nn.Linear(8, 2)))
    assert at_eight(flat) == {'stem_rgb', 'stem_depth', 'head.fc'}


def test_a_narrow_layer_behind_the_first_is_no_stem():
    assert at_eight(tree(conv1=conv(3, 4), conv2=conv(4, 4), conv3=conv(4, 4), fc=nn.Linear(4, 2))) == {'conv1', 'fc'}
    gate = tree(stem=conv(3, 8), gate=nn.Conv2d(2, 8, 7), body=conv(8, 8), head=tree(fc=nn.Linear(8, 2)))
    assert at_eight(gate) == {'stem', 'head.fc'}, 'of another size'


class DeclaredBackwards(nn.Module):
    """Its classifier is declared before its convolutions."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 5)
        self.conv2 = conv(8, 8)
        self.conv1 = conv(channels, 8)

    def forward(self, x):
        return self.fc(self.conv2(self.conv1(x)).mean((2, 3)))


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_layers_declared_in_another_order_than_they_run(channels):
    net = DeclaredBackwards(channels)
    wanted = {'conv1', 'fc'}
    assert reasons(net, example=torch.rand(1, channels, 9, 9)) == {'conv1': TRACED, 'fc': 'prediction layer (by name)'}
    assert reasons(net) == {'conv1': CHANNELS, 'fc': 'first layer'}
    quantized = mmgdrq.quantize(net, dict(bits=2), example=torch.rand(1, channels, 9, 9))
    assert {row.name for row in mmgdrq.state(quantized).plan if row.weight.bits == 8} == wanted


def test_the_first_layer_that_is_declared_is_kept_too():
    """It may be the classifier, or the embedding of the time in a diffusion model."""
    net = tree(time=nn.Linear(8, 8), conv_in=conv(4, 8), body=conv(8, 8), conv_out=conv(8, 4))
    assert reasons(net) == {'time': 'first layer', 'conv_in': CHANNELS, 'conv_out': 'prediction layer (by name)'}


class Streams(nn.Module):
    """Reads two images, normalized, cut and joined with something else; one as a batch of keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 2)
        self.thermal = nn.Conv2d(6, 8, 3)
        self.body = nn.Conv2d(3, 3, 1)
        self.stem = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3))
        self.refine = nn.Conv2d(8 + 3, 8, 3, padding=1)
        self.shrink = nn.Conv2d(8, 3, 1)

    def forward(self, image, *, other):
        image = (image - 0.5).flip(1).div_(2)
        x = self.stem(image) + self.thermal(torch.cat([other['heat'], other['heat'][:, :3]], 1))
        x = torch.relu_(x)
        x = self.refine(torch.cat([x, image[..., 1:-1, 1:-1]], 1))
        x = self.body(self.shrink(x))
        return self.last(x.mean((2, 3)).repeat(1, 3)[:, :8])


def test_what_a_layer_reads_is_followed_through_operations():
    args = torch.rand(2, 3, 8, 8), dict(heat=torch.rand(2, 3, 8, 8))
    net = Streams()
    examples = [
        dict(image=args[0], other=args[1]),
        lambda model: model(args[0], other=args[1]),
    ]
    for example in examples:
        found = reasons(net, example=example)
        assert {name for name, reason in found.items() if reason == TRACED} == {'stem.1', 'thermal', 'refine'}
        assert found['last'] == 'prediction layer (by name)'
        assert 'body' not in found, 'three channels, and no image'
    assert reasons(net).get('body') == CHANNELS, 'without an example'


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, y):
        return self.c(self.a(x) + self.b(y))


class Padding(nn.Module):
    """Writes its image into a part of a larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.stem, self.last = nn.Conv2d(8, 8, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, image):
        padded = torch.zeros(1, 4, 16, 16)
        padded[:, :3, 2:11, 2:11] = image
        return self.last(self.body(self.stem(padded)))


class ReadsTwice(nn.Module):
    """One layer reads the input, then its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.fc = conv(5, 5), conv(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        return self.fc(self.stem(self.shared(self.shared(x))).mean((2, 3)))


def test_one_call_on_the_input_is_enough():
    found = reasons(ReadsTwice(), example=torch.rand(1, 5, 9, 9))
    assert found['shared'] == TRACED
    assert 'stem' not in found


def test_an_image_that_is_written_into_another_tensor():
    found = reasons(Padding(), example=torch.rand(1, 3, 9, 9))
    assert found == {'stem': TRACED, 'last': 'prediction layer (by name)'}


def test_positional_inputs():
    found = reasons(Pair(), example=(torch.rand(2, 4), torch.rand(2, 4)))
    assert found == {'a': TRACED, 'b': TRACED, 'c': 'prediction layer (by name)'}
    assert reasons(Pair()) == {'a': 'first layer', 'c': 'prediction layer (by name)'}


def test_the_pass_leaves_the_model_as_it_is():
    net = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Dropout(), conv(8, 2)).train()
    net[1].eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    mmgdrq.plan(net, example=torch.rand(2, 3, 9, 9))
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
    with pytest.raises(RuntimeError):
        mmgdrq.plan(net, example=torch.rand(2, 5, 9, 9))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_an_example_that_reaches_no_layer_is_an_error():
    with pytest.raises(ConfigError, match='example: no weight layer of the model reads a tensor of it'):
        mmgdrq.plan(nn.Sequential(conv(3, 8)), example=lambda model: None)


def test_the_first_layer_of_a_model_that_reads_no_image():
    assert image_layers({}) == {}
    assert image_layers(dict(a=nn.Linear(3, 4), b=nn.Linear(4, 3))) == dict(a='first layer')


class OwnMode(nn.Module):
    """Has what it needs for evaluation only after ``eval()``, as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(3, 8), nn.Linear(8, 2)

    def train(self, mode=True):
        super().train(mode)
        if mode:
            vars(self).pop('cache', None)
        else:
            self.cache = torch.ones(8)
        return self

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)) * (1 if self.training else self.cache))


@pytest.mark.parametrize('training', [True, False])
def test_a_model_that_changes_in_eval(training):
    net = OwnMode().train(training)
    found = reasons(net, example=torch.rand(1, 3, 9, 9))
    assert found == {'conv': TRACED, 'fc': 'prediction layer (by name)'}
    assert (net.training, hasattr(net, 'cache')) == (training, not training)


class Costs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, groups=8)
        self.up, self.fc = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Linear(4, 10)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        x = self.depthwise(self.stem(x))
        return self.fc(torch.cat([self.up(x), self.up(x)], 2).mean((2, 3)))


def test_the_plan_says_what_the_layers_cost():
    plan = mmgdrq.plan(Costs(), dict(bits=2), dict(bits=4), example=torch.rand(2, 3, 9, 9))
    macs = dict(stem=2 * 4 * 4 * 8 * 27, depthwise=2 * 2 * 2 * 8 * 9, up=2 * (2 * 2 * 2) * 8 * 4 * 4, fc=2 * 4 * 10)
    assert {row.name: row.macs for row in plan} == {**macs, 'unused': None}
    assert {row.name: row.bit_operations for row in plan} == {
        'stem': macs['stem'] * 64,
        'depthwise': macs['depthwise'] * 8,
        'up': macs['up'] * 8,
        'fc': macs['fc'] * 64,
        'unused': None,
    }
    assert str(plan).splitlines()[2].split()[7] == f'{macs["stem"]:,}'
    assert mmgdrq.Plan.from_json(plan.to_json()) == plan
    skipped = plan.set('stem', skip=True)[0]
    assert skipped.bit_operations == macs['stem'] * 32 * 32
    assert 'MACs' not in str(mmgdrq.plan(Costs()))


@pytest.mark.parametrize('others', [(1,), (4,), (1, 4)])
def test_images_of_three_channels_come_first_where_the_first_layer_reads_none(others):
    """A gray or a four-channel layer may be a mask or a gate."""
    parts = {f'part{channels}': conv(channels, 8) for channels in (*others, 3)}
    net = tree(body=conv(8, 8), **parts, head=tree(fc=nn.Linear(8, 2)))
    assert [name for name, reason in reasons(net).items() if reason == CHANNELS] == ['part3']


def test_a_second_stream_has_the_same_geometry():
    net = tree(rgb=tree(conv1=nn.Conv2d(3, 8, 3, 2, 1)), depth=tree(conv1=nn.Conv2d(1, 8, 3, 1, 1)), body=conv(8, 8))
    assert 'depth.conv1' not in at_eight(tree(**net._modules, head=tree(fc=nn.Linear(8, 2))))


def test_a_second_stream_differs_in_one_part_of_its_name():
    streams = dict(rgb=tree(stem=tree(conv1=conv(3, 8))), mask=tree(gate=tree(conv1=conv(1, 8))))
    assert 'mask.gate.conv1' not in at_eight(tree(**streams, body=conv(8, 8), head=tree(fc=nn.Linear(8, 2))))
