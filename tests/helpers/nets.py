"""Small networks for the tests of layers, and what they have learned of their ranges."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import mmgdrq


def exact(seed, *shape, signed=True):
    """Multiples of 1/64, whose float32 sums are exact in any order."""
    values = np.random.default_rng(seed).integers(-128 if signed else 0, 128, shape)
    return torch.tensor(values / 64, dtype=torch.float32)


def set_exact(layer, seed=0):
    with torch.no_grad():
        layer.weight.copy_(exact(seed, *layer.weight.shape))
    return layer


class SharedHead(nn.Module):
    """A head that is called once a level."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.tower = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, levels):
        return [self.last(F.relu(self.tower(F.relu(self.stem(x))))) for x in levels]


class Checkpointed(nn.Module):
    """A block whose forward pass may be computed again in the backward pass."""

    def __init__(self, again=None):
        super().__init__()
        self.again = again
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.block(x) if self.again is None else checkpoint(self.block, x, use_reentrant=self.again)
        x = x + self.block(F.relu(x) * 3)  # this call is not computed again
        return self.last(F.relu(x))


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * 16, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )


def inputs(seed=0):
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def trained(net, steps=2, **quant):
    quant = quant or dict(weight=dict(bits=3), activation=dict(bits=4))
    net = mmgdrq.quantize(net, **quant).train()
    for seed in range(steps):
        net(inputs(seed))
    net.state_dict()  # settles what the last iteration saw
    return net


def ranges(model):
    """Buffers of all quantizers, as a checkpoint would hold them."""
    return {k: v.clone() for k, v in model.state_dict().items() if 'quantizer' in k}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


class PartlyUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused, self.last = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu())


def relu_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(8 * 9, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )


def at_asked_bits(**quant):
    """Quantize the only layer as asked, though it is the first and the last."""
    quant = {'weight': dict(bits=2), 'activation': dict(bits=4), **quant}
    return dict(rules=[dict(pattern='1', **quant)])
