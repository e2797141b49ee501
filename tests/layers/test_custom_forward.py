"""Layers of other libraries with a forward pass of their own: the operands of their one operation are quantized."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.layers.custom_forward import called_operation
from tests.helpers import reference


class SamePadding(nn.Conv2d):
    """As timm's ``Conv2dSame``: pads as much as its input needs, more at the end."""

    def forward(self, x):
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, groups=self.groups)


class Standardized(nn.Conv2d):
    """As timm's ``StdConv2d``: the weight is computed from the stored one."""

    def forward(self, x):
        return F.conv2d(x, weight=self.standardized(), bias=self.bias, padding=self.padding)

    def standardized(self):
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return (self.weight - mean) / (std + 1e-6) * 0.5


class ScaledLinear(nn.Linear):
    def forward(self, x):
        return 3 * F.linear(input=x, weight=self.weight, bias=self.bias)


class Child(nn.Conv2d):
    """Registers a buffer and a child that its forward pass changes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer('calls', torch.zeros(()))
        self.norm = nn.BatchNorm2d(self.in_channels)

    def forward(self, x):
        self.calls += 1
        return F.conv2d(self.norm(x), self.weight, self.bias)


class Twice(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight) + F.conv2d(x.flip(-1), self.weight)


class TwoInputs(nn.Conv2d):
    def forward(self, x, other):
        return F.conv2d(x + other, self.weight)


class Cut(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x[:, :2], self.weight[:, :2])


BITS = dict(weight=dict(bits=4, range='minmax'), activation=dict(bits=4, range='minmax', signed=True))


def quantized(layer: nn.Module, x: torch.Tensor) -> nn.Module:
    """A model of one layer in the middle, which has its ranges from ``x``."""
    mmgdrq.quantize(layer, rules=[dict(pattern='*', **BITS)])
    layer.train()(x)
    return layer.eval()


def on_grid(tensor: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """4 bits, two's complement: 8 steps up to the bound."""
    return torch.from_numpy(reference.fake_quantize(tensor.numpy(), bound.numpy(), (-8, 7, 8, 0.0)))


def expected_weight(weight: torch.Tensor) -> torch.Tensor:
    return on_grid(weight, weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True))


@pytest.mark.parametrize('size', [(8, 8), (9, 7), (33, 12)], ids=str)
@pytest.mark.parametrize('stride', [1, 2])
def test_what_is_padded_is_quantized(size, stride):
    torch.manual_seed(0)
    layer = SamePadding(3, 4, 3, stride)
    x = torch.randn(2, 3, *size)
    twin = copy.deepcopy(layer)
    twin.weight.data = expected_weight(layer.weight.data)
    expected = twin(on_grid(x, x.abs().max()))
    assert torch.allclose(quantized(layer, x)(x), expected, atol=1e-5)


def test_the_weight_that_was_computed_is_quantized():
    torch.manual_seed(0)
    layer = Standardized(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 8, 8)
    weight = expected_weight(layer.standardized().detach())
    expected = F.conv2d(on_grid(x, x.abs().max()), weight, layer.bias, padding=1)
    assert torch.allclose(quantized(layer, x)(x), expected, atol=1e-5)


def test_what_follows_the_operation_stays():
    torch.manual_seed(0)
    layer = ScaledLinear(5, 4)
    x = torch.randn(6, 5)
    weight = expected_weight(layer.weight.detach())
    expected = 3 * F.linear(on_grid(x, x.abs().max()), weight, layer.bias)
    assert torch.allclose(quantized(layer, x)(x), expected, atol=1e-5)


@pytest.mark.parametrize('cls', [SamePadding, Standardized])
def test_gradients_pass_straight_through(cls):
    torch.manual_seed(0)
    layer = cls(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 8, 8)
    quantized(layer, x)
    layer(x).square().sum().backward()
    assert bool((layer.weight.grad != 0).all())


def test_looking_at_a_layer_changes_nothing():
    layer = Child(3, 4, 1).train()
    before = copy.deepcopy(layer.state_dict())
    assert called_operation(layer).is_parameter
    assert layer.training
    assert layer.norm.training
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize('cls', [Twice, TwoInputs, Cut])
def test_others_stay_in_float_and_the_plan_says_so(cls):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), cls(3, 4, 3), nn.Conv2d(4, 4, 1))
    row = next(row for row in mmgdrq.plan(net) if row.name == '2')
    assert not row.quantized
    assert cls.__name__ in row.reason


def test_scale_clip_leaves_a_computed_weight_alone():
    torch.manual_seed(0)
    net = nn.Sequential(SamePadding(3, 4, 3), Standardized(4, 4, 3), nn.Conv2d(4, 2, 1))
    mmgdrq.quantize(net)
    net[0].weight.data[0, 0, 0, 0] = net[1].weight.data[0, 0, 0, 0] = 9.0
    mmgdrq.ScaleClip(net)()
    assert net[0].weight.abs().max() < 9
    assert net[1].weight.abs().max() == 9


@pytest.mark.parametrize('range_', ['mean', 'search', 'learned', 'minmax'])
def test_folded_it_computes_the_same(range_):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        SamePadding(4, 6, 3, 2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        Standardized(6, 6, 3),
        nn.Conv2d(6, 2, 1),
    )
    mmgdrq.quantize(net, weight=dict(bits=4, range=range_), activation=dict(bits=4))
    x = torch.randn(2, 3, 12, 11)
    net.train()(x)
    net.eval()
    with torch.no_grad():
        folded = mmgdrq.fold(net, example=x)
        assert torch.allclose(folded(x), net(x), atol=1e-5)


def test_copies_and_pickles(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), SamePadding(4, 6, 3, 2), nn.Conv2d(6, 2, 1))
    x = torch.randn(2, 3, 12, 11)
    mmgdrq.quantize(net).train()(x)
    net.eval()
    torch.save(net, tmp_path / 'net.pth')
    for twin in (copy.deepcopy(net), torch.load(tmp_path / 'net.pth', weights_only=False)):
        assert torch.equal(twin(x), net(x))
