"""Models that are ready to be folded, and what has to hold afterwards."""

import torch
from torch import nn

import mmgdrq


def randomize_norms(net, seed=0):
    """BN as after long training: signs, zeros and statistics of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.2, 3, generator=generator)
            if module.weight is not None:
                with torch.no_grad():
                    module.weight.normal_(generator=generator)
                    module.bias.normal_(generator=generator)
                    module.weight[0] = 0
                    module.weight[1] = -0.7


def ready(net, x, weight=None, activation=None, rules=(dict(pattern='*', weight=dict(), activation=dict()),)):
    """Quantize, set the ranges and spread the BN parameters; a rule without changes drops no default."""
    mmgdrq.quantize(net, weight or dict(bits=3), activation or dict(bits=4), rules)
    net.train()
    net(x)
    randomize_norms(net)
    net.state_dict()
    return net.eval()


def block(first, norm=nn.BatchNorm2d, channels=6, **norm_args):
    """A layer under test without the layers around it, so that no tie spreads."""
    return nn.Sequential(first, norm(channels, **norm_args))


def assert_folds(net, x, pairs=None, tolerance=2e-6):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    folded = mmgdrq.fold(net, x, pairs)
    expected, result = net(x), folded(x)
    scale = float(expected.detach().abs().max())
    assert scale > 0
    assert float((result - expected).detach().abs().max()) <= tolerance * scale
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert_integers(folded)
    return folded


def assert_integers(folded):
    modules = dict(folded.named_modules())
    for name, entry in folded.gdrq_folded.items():
        bits = entry.weight_bits
        if bits == 32:
            continue
        weight = modules[name].weight
        assert torch.equal(weight, weight.round())
        places = (weight - entry.weight_lowest) / entry.weight_stride
        assert torch.equal(places, places.round())
        assert float(places.min()) >= 0
        assert float(places.max()) < 2**bits
        assert int(weight.unique().numel()) > 1
        assert not weight.requires_grad
        assert modules[name].bias is None
        if entry.norm:
            assert modules[name].scale is None
            assert modules[name].offset is None


IMAGE = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(1))
