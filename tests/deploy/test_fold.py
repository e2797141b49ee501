"""Folding: integers and BN alone compute what the quantized model computes."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.deploy.fold import find_pairs
from mmgdrq.deploy.pairs import pairs_by_trace
from mmgdrq.errors import FoldError
from mmgdrq.quant.spec import GRIDS
from tests import reference


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
        bits = entry['weight_bits']
        if bits == 32:
            continue
        weight = modules[name].weight
        assert torch.equal(weight, weight.round())
        places = (weight - entry['weight_lowest']) / entry['weight_stride']
        assert torch.equal(places, places.round())
        assert float(places.min()) >= 0
        assert float(places.max()) < 2**bits
        assert int(weight.unique().numel()) > 1
        assert not weight.requires_grad
        assert modules[name].bias is None
        if entry['norm']:
            assert modules[name].scale is None
            assert modules[name].offset is None


IMAGE = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(1))

CONVS = {
    'plain': dict(bias=False),
    'bias': dict(bias=True),
    'padding': dict(padding=1),
    'stride and dilation': dict(padding=2, stride=2, dilation=2),
    'grouped': dict(groups=2, padding=1),
    'reflect': dict(padding=1, padding_mode='reflect'),
}


@pytest.mark.parametrize('conv', CONVS)
@pytest.mark.parametrize('group_size', [1, 4, -1])
@pytest.mark.parametrize('signed', [False, True])
def test_conv_and_norm(conv, group_size, signed):
    x = IMAGE if signed else IMAGE.relu()
    net = ready(block(nn.Conv2d(4, 6, 3, **CONVS[conv])), x, dict(bits=3, group_size=group_size))
    assert bool(net[0].activation_quantizer.signed) is signed
    folded = assert_folds(net, x)
    assert folded.gdrq_folded['0']['norm'] == '1'
    low, high = folded[0].input_codes.limits
    codes = folded[0].input_codes(x)
    assert torch.equal(codes, codes.round())
    assert low <= float(codes.min())
    assert float(codes.max()) <= high


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('rule', ['mean', 'search', 'learned', 'minmax'])
def test_bits_grids_and_rules(bits, grid, rule):
    weight = dict(bits=bits, grid=grid, range=rule, group_size=2)
    net = ready(block(nn.Conv2d(4, 6, 3)), IMAGE, weight, dict(bits=bits, range=rule))
    folded = assert_folds(net, IMAGE)
    weight, stored = folded[0].weight.detach(), folded.gdrq_folded['0']['weight_bits']
    assert stored == 8, 'the layer reads the image'
    odd = bool((weight % 2 == 1).all())
    assert not odd, 'odd integers of 8 bits do not fit int8'
    assert float(weight.min()) >= (-127 if grid == 'narrow_range' else -128)


@pytest.mark.parametrize('bits', range(2, 8))
def test_a_midrise_grid_folds_to_odd_integers(bits):
    rules = [dict(pattern='*', weight=dict(bits=bits, grid='midrise', group_size=2), activation={})]
    folded = assert_folds(ready(block(nn.Conv2d(4, 6, 3)), IMAGE, rules=rules), IMAGE)
    weight = folded[0].weight.detach()
    assert bool((weight % 2 == 1).all())
    assert int(weight.abs().max()) <= 2**bits - 1


def test_depthwise_conv():
    net = ready(block(nn.Conv2d(6, 6, 3, groups=6, padding=1)), IMAGE.repeat(1, 2, 1, 1)[:, :6])
    assert_folds(net, IMAGE.repeat(1, 2, 1, 1)[:, :6])


def test_zero_weights_and_zero_gamma():
    conv = nn.Conv2d(4, 6, 3)
    conv.weight.data[2] = 0
    net = ready(block(conv), IMAGE)
    folded = assert_folds(net, IMAGE)
    assert float(net[1].weight[0].detach()) == 0
    y = folded(IMAGE)
    assert bool(y.isfinite().all())
    torch.testing.assert_close(y[:, 0], net[1].bias[0].detach().expand_as(y[:, 0]))


def test_linear_and_norm():
    x = torch.randn(8, 10)
    folded = assert_folds(ready(block(nn.Linear(10, 6), nn.BatchNorm1d), x), x)
    assert folded.gdrq_folded['0']['norm'] == '1'


def test_sync_norm():
    net = block(nn.Conv2d(4, 6, 3))
    net[1] = nn.SyncBatchNorm(6)
    mmgdrq.quantize(net)
    net[0].train()
    net[1].eval()
    net[0].activation_quantizer.observing = True
    net.training = True
    net(IMAGE)
    randomize_norms(net)
    assert assert_folds(net.eval(), IMAGE).gdrq_folded['0']['norm'] == '1'


def test_norm_without_affine_parameters():
    net = ready(block(nn.Conv2d(4, 6, 3), affine=False), IMAGE)
    assert net[1].weight is None
    assert_folds(net, IMAGE)
    assert net[1].weight is None


def test_norm_without_running_statistics():
    net = ready(nn.Sequential(nn.Conv2d(4, 6, 3)), IMAGE)
    net.append(nn.BatchNorm2d(6, track_running_stats=False))
    with pytest.raises(FoldError, match='running statistics'):
        mmgdrq.fold(net)


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_no_norm(kind, bias):
    if kind == 'conv':
        layer, x = nn.Conv2d(4, 6, 3, bias=bias, padding=1), IMAGE
    else:
        layer, x = nn.Linear(10, 6, bias=bias), torch.randn(2, 3, 10)
    folded = assert_folds(ready(nn.Sequential(layer), x, dict(bits=2, group_size=4)), x)
    assert folded.gdrq_folded['0']['norm'] is None
    assert folded[0].scale.shape == (6,)
    assert (folded[0].offset is not None) is bias


@pytest.mark.parametrize('norm', [False, True])
def test_a_float_weight_or_input(norm):
    for weight, activation in ((32, 4), (3, 32)):
        net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity())
        ready(net, IMAGE, dict(bits=weight), dict(bits=activation))
        folded = assert_folds(net, IMAGE)
        assert folded.gdrq_folded['0']['weight_bits'] == (32 if weight == 32 else 8)
        assert (folded.gdrq_folded['0']['input'] is None) is (activation == 32)


class Net(nn.Module):
    """Two blocks whose wiring the tests change."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Skips(Net):
    """The output of conv1 is also added behind bn2."""

    def forward(self, x):
        y = self.conv1(x)
        return self.bn2(self.conv2(F.relu(self.bn1(y)))) + y


class Viewed(Net):
    """The output of conv1 is also looked at through a tensor method."""

    def forward(self, x):
        y = self.conv1(x)
        return self.bn2(self.conv2(F.relu(self.bn1(y)))) * y.mean()


class Changed(Net):
    """Something happens between conv1 and bn1."""

    def forward(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x) * 2))))


class TwoNorms(Net):
    """conv1 feeds both BNs."""

    def forward(self, x):
        y = self.conv1(x)
        return self.bn1(y) + self.bn2(y) + self.conv2(y)


class PreActivation(Net):
    """BN before the convolution."""

    def __init__(self):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class SharedConv(Net):
    """One convolution with a BN of its own in every call."""

    def forward(self, x):
        x = self.conv1(x)
        return self.bn1(self.conv2(x)) + self.bn2(self.conv2(x * 0.5))


class SharedNorm(Net):
    """One BN behind two convolutions."""

    def forward(self, x):
        return self.bn1(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Returns(Net):
    """The raw output of conv1 leaves the model as well."""

    def forward(self, x):
        y = self.conv1(x)
        self.seen = self.bn2(self.conv2(F.relu(self.bn1(y))))
        return dict(raw=[y], out=self.seen)


class SharedPair(Net):
    """Convolution and BN are called together several times, as in a head over several levels."""

    def forward(self, x):
        x = self.conv1(x)
        return sum(self.bn2(self.conv2(y)) for y in (x, x * 0.5, x.abs()))


class WritesInto(Net):
    """An element of the output of conv1 is overwritten before bn1 reads it."""

    def forward(self, x):
        y = self.conv1(x)
        y[:, 0] = 5.0
        return self.bn2(self.conv2(F.relu(self.bn1(y))))


class CopiesInto(Net):
    """The output of conv1 is also written into another tensor."""

    def forward(self, x):
        y = self.conv1(x)
        other = x.new_zeros(y.shape)
        other[:] = y
        return self.bn2(self.conv2(F.relu(self.bn1(y)))) + other


class ReadsOneValue(Net):
    """The output of conv1 is also read as Python numbers."""

    def forward(self, x):
        y = self.conv1(x)
        return self.bn2(self.conv2(F.relu(self.bn1(y)))) + max(y.flatten().tolist())


class ToLists(Net):
    """The output of conv1 itself becomes Python numbers."""

    def forward(self, x):
        y = self.conv1(x)
        return self.bn2(self.conv2(F.relu(self.bn1(y)))) + y.tolist()[0][0][0][0]


class AsKeyword(Net):
    """The output of conv1 goes into conv2 by keyword as well."""

    def forward(self, x):
        y = self.conv1(x)
        return self.bn1(y) + self.bn2(self.conv2(input=y))


class ReadsTheShape(Net):
    """Sizes, dtypes and flags of the output of conv1 are no values: the pair is certain."""

    def forward(self, x):
        y = self.conv1(x)
        self.facts = [y.shape, y.size(0), y.dim(), y.numel(), len(y), y.is_contiguous(), y.stride()]
        self.facts += [y.dtype, y.device, y.requires_grad, y.is_floating_point(), y.layout]
        return self.bn2(self.conv2(F.relu(self.bn1(y))))


WIRINGS = {
    WritesInto: {'conv2': 'bn2'},
    CopiesInto: {'conv2': 'bn2'},
    ReadsOneValue: {'conv2': 'bn2'},
    ToLists: {'conv2': 'bn2'},
    AsKeyword: {'conv2': 'bn2'},
    ReadsTheShape: {'conv1': 'bn1', 'conv2': 'bn2'},
    Net: {'conv1': 'bn1', 'conv2': 'bn2'},
    Skips: {'conv2': 'bn2'},
    Viewed: {'conv2': 'bn2'},
    Changed: {'conv2': 'bn2'},
    TwoNorms: {},
    PreActivation: {'conv1': 'bn2'},
    SharedConv: {},
    SharedNorm: {},
    Returns: {'conv2': 'bn2'},
    SharedPair: {'conv2': 'bn2'},
}


@pytest.mark.parametrize('cls', WIRINGS, ids=lambda cls: cls.__name__)
def test_pairs_of_a_trace(cls):
    x = IMAGE[:, :4]
    net = ready(cls(), x)
    assert pairs_by_trace(net, lambda: net(x)) == WIRINGS[cls]
    assert find_pairs(net, x) == find_pairs(net, (x,)) == find_pairs(net, lambda model: model(x)) == WIRINGS[cls]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (net.conv1, net.bn1))


@pytest.mark.parametrize('cls', WIRINGS, ids=lambda cls: cls.__name__)
def test_every_wiring_folds(cls):
    """8-bit inputs and equal inputs a block: compared block by block, as ties spread through a net."""
    net = ready(cls(), IMAGE)
    folded = mmgdrq.fold(net, IMAGE)
    errors = mmgdrq.deploy.compare_blocks(net, folded, lambda model: model(IMAGE))
    assert set(errors) == {'conv1', 'conv2'}
    assert max(errors.values()) < 1e-5
    assert_integers(folded)


def test_a_raw_output_of_the_model_keeps_its_scale():
    net = ready(Returns(), IMAGE)
    raw = mmgdrq.fold(net, IMAGE)(IMAGE)['raw'][0]
    torch.testing.assert_close(raw, net(IMAGE)['raw'][0], rtol=1e-5, atol=1e-5)


def test_one_call_outside_of_the_pair_is_enough():
    net = ready(Net(), IMAGE)

    def run():
        net(IMAGE)
        net.conv1(IMAGE).sum()

    assert pairs_by_trace(net, run) == {'conv2': 'bn2'}


def test_without_an_example_only_what_the_code_guarantees():
    net = ready(Net(), IMAGE)
    assert find_pairs(net) == {}
    net = ready(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3)), IMAGE)
    assert find_pairs(net) == {'0': '1'}
    conv = nn.Conv2d(6, 6, 3, padding=1)
    shared = nn.Sequential(nn.Conv2d(4, 6, 3), conv, nn.BatchNorm2d(6), conv, nn.BatchNorm2d(6))
    assert find_pairs(ready(shared, IMAGE)) == {}


def test_given_pairs_are_used():
    net = ready(Net(), IMAGE)
    folded = assert_folds_blockwise(net, {'conv1': 'bn1'})
    assert folded.gdrq_folded['conv1']['norm'] == 'bn1'
    assert folded.gdrq_folded['conv2']['norm'] is None


def assert_folds_blockwise(net, pairs):
    folded = mmgdrq.fold(net, pairs=pairs)
    errors = mmgdrq.deploy.compare_blocks(net, folded, lambda model: model(IMAGE))
    assert max(errors.values()) < 1e-5
    return folded


def test_the_mode_of_the_model_stays():
    net = ready(Net(), IMAGE).train()
    net.bn1.eval()
    before = copy.deepcopy(net.state_dict())
    folded = mmgdrq.fold(net, IMAGE)
    assert net.training
    assert not net.bn1.training
    assert not folded.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_errors():
    with pytest.raises(FoldError, match='no quantized layer'):
        mmgdrq.fold(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(FoldError, match='conv1 has no activation range'):
        mmgdrq.fold(mmgdrq.quantize(Net()))
    for stage in ('float', 'reshape', 'quantize_weight'):
        net = ready(Net(), IMAGE)
        mmgdrq.set_stage(net, stage)
        with pytest.raises(FoldError, match=f"stage '{stage}'"):
            mmgdrq.fold(net)


@pytest.mark.parametrize('cls', [WritesInto, CopiesInto, ToLists, AsKeyword], ids=lambda cls: cls.__name__)
def test_what_reads_a_raw_output_gets_the_same_values(cls):
    net = ready(cls(), IMAGE)
    folded, seen = mmgdrq.fold(net, IMAGE), []
    for model in (net, folded):
        model.conv1.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
        model(IMAGE)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('group_size', [1, 4, -1])
@pytest.mark.parametrize('bias', [False, True])
def test_codes_and_outputs_equal_the_folding_formula(bits, group_size, bias):
    torch.manual_seed(2)
    spec = dict(bits=bits, group_size=group_size, k=2.0, grid='twos_complement')
    net = ready(block(nn.Conv2d(4, 6, 3, bias=bias)), IMAGE, rules=[dict(pattern='*', weight=spec, activation={})])
    folded = mmgdrq.fold(net, IMAGE)
    weight = net[0].weight.detach().numpy()
    alphas = np.float32(2) * reference.mean_abs(weight, group_size)
    grid = reference.weight_grid(bits, 'twos_complement')
    parts = list(zip(reference.groups(6, group_size), alphas))
    codes = np.concatenate([reference.codes(weight[part], alpha, grid) for part, alpha in parts])
    steps = np.concatenate([[reference.step(alpha, grid[2])] * (part.stop - part.start) for part, alpha in parts])
    assert np.mean(folded[0].weight.numpy() != codes) < 0.01, 'but for ties that the order of a sum decides'
    quantizer, norm = net[0].activation_quantizer, net[1]
    assert quantizer.spec.bits == 8
    input_grid = reference.activation_grid(8, signed=True)
    threshold = float(quantizer.threshold)
    x = reference.codes(IMAGE.numpy(), threshold, input_grid)
    acc = F.conv2d(torch.from_numpy(x).double(), folded[0].weight.double()).numpy()
    values = {k: getattr(norm, k).detach().numpy() for k in ('weight', 'bias', 'running_mean', 'running_var')}
    expected = reference.folded_block(
        acc,
        steps,
        reference.step(threshold, input_grid[2]),
        net[0].bias.detach().numpy() if bias else np.zeros(6),
        values['weight'],
        values['bias'],
        values['running_mean'],
        values['running_var'],
        norm.eps,
    )
    slack = 1e-5 * np.abs(expected).max()
    for result in (net(IMAGE), folded(IMAGE)):
        np.testing.assert_allclose(result.detach().numpy(), expected, rtol=0, atol=slack)


@pytest.mark.parametrize('bias', [False, True])
def test_one_image_without_a_batch(bias):
    net = ready(nn.Sequential(nn.Conv2d(4, 6, 2, bias=bias)), IMAGE)  # its output is 6 x 6 x 6
    folded = mmgdrq.fold(net)
    torch.testing.assert_close(folded(IMAGE[0]), net(IMAGE[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('filters', [6, 8])
def test_a_norm_over_tokens_does_not_carry_the_scale_of_filters(filters):
    """BN of (N, L, C) normalizes L, whatever the size of C."""
    x = torch.randn(3, 6, 10)
    folded = assert_folds(ready(nn.Sequential(nn.Linear(10, filters), nn.BatchNorm1d(6)), x), x)
    assert folded.gdrq_folded['0']['norm'] is None


class Tied(Net):
    """Two convolutions, and two BNs, share their parameters, but not their ranges and statistics."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv2.weight = self.conv1.weight
        self.bn2.weight, self.bn2.bias = self.bn1.weight, self.bn1.bias

    def forward(self, x):
        return self.bn1(self.conv1(x)) + self.bn2(self.conv2(x * 3))


@pytest.mark.parametrize('example', [IMAGE, None], ids=['in norms', 'in layers'])
def test_tied_parameters(example):
    net = ready(Tied(), IMAGE)
    folded = mmgdrq.fold(net, example)
    assert len(folded.gdrq_folded) == 2
    assert all((entry['norm'] is None) is (example is None) for entry in folded.gdrq_folded.values())
    expected = net(IMAGE)
    assert float((folded(IMAGE) - expected).detach().abs().max()) < 1e-5 * float(expected.detach().abs().max())
    assert net.conv2.weight is net.conv1.weight
    assert net.bn2.weight is net.bn1.weight
