"""Folding a model: which BN takes the scale of which layer, however the two are wired."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmgdrq
from mmgdrq.deploy.folding.batchnorm_pairs import pairs_by_trace
from mmgdrq.deploy.folding.fold import find_pairs
from mmgdrq.errors import FoldError
from tests.helpers.folding import IMAGE, assert_integers, ready


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
    assert folded.gdrq_folded['conv1'].norm == 'bn1'
    assert folded.gdrq_folded['conv2'].norm is None


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
    assert all((entry.norm is None) is (example is None) for entry in folded.gdrq_folded.values())
    expected = net(IMAGE)
    assert float((folded(IMAGE) - expected).detach().abs().max()) < 1e-5 * float(expected.detach().abs().max())
    assert net.conv2.weight is net.conv1.weight
    assert net.bn2.weight is net.bn1.weight


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def forward(self, x):
        return F.silu(super().forward(x))


class OnePlus(nn.BatchNorm2d):
    """Its factor is one more than its weight."""

    def forward(self, x):
        weight = 1 + self.weight
        return F.batch_norm(x, self.running_mean, self.running_var, weight, self.bias, self.training, 0.1, self.eps)


NORMS = {'subclass': lambda: NormAct(6), 'another use of the weight': lambda: OnePlus(6)}


@pytest.mark.parametrize('example', [IMAGE, None], ids=['traced', 'by structure'])
@pytest.mark.parametrize('norm', NORMS)
def test_a_norm_with_a_forward_pass_of_its_own_carries_nothing(norm, example):
    net = ready(nn.Sequential(nn.Conv2d(4, 6, 3), NORMS[norm]()), IMAGE)
    folded = mmgdrq.fold(net, example)
    assert folded.gdrq_folded['0'].norm is None
    expected = net(IMAGE)
    assert float((folded(IMAGE) - expected).detach().abs().max()) < 1e-5 * float(expected.detach().abs().max())
    with pytest.raises(FoldError, match=r'1, the BN of 0, is a \w+ that does something else'):
        mmgdrq.fold(net, pairs={'0': '1'})


def test_a_norm_whose_forward_pass_is_patched_carries_nothing():
    net = ready(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), IMAGE)
    norm = net[1]
    norm.forward = lambda x: F.silu(nn.BatchNorm2d.forward(norm, x))
    assert find_pairs(net, IMAGE) == find_pairs(net) == {}


def doubled(module, args, output):
    return 2 * output


def test_a_hook_on_a_layer_is_refused_by_its_name():
    net = ready(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), IMAGE)
    net[0].register_forward_hook(doubled)
    with pytest.raises(FoldError, match=r'fold: 0 has the forward hook .*\.doubled'):
        mmgdrq.fold(net, IMAGE)


def test_a_hook_on_a_norm_keeps_the_scale_in_the_layer():
    net = ready(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), IMAGE)
    net[1].register_forward_pre_hook(lambda module, args: args[0] + 1)
    folded = mmgdrq.fold(net, IMAGE)
    assert folded.gdrq_folded['0'].norm is None
    torch.testing.assert_close(folded(IMAGE), net(IMAGE), rtol=1e-4, atol=1e-5)


class ReadsInside(nn.Module):
    """The parent of a Sequential reads its convolution before the BN."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))

    def forward(self, x):
        y = self.body[0](x)
        return self.body[1](y) + y.abs()


def test_without_an_example_a_parent_may_read_between_the_two():
    net = ready(ReadsInside(), IMAGE)
    assert find_pairs(net) == {}
    expected = net(IMAGE)
    assert float((mmgdrq.fold(net)(IMAGE) - expected).detach().abs().max()) < 1e-5 * float(
        expected.detach().abs().max()
    )


def test_without_an_example_a_norm_may_be_over_tokens():
    x = torch.randn(4, 16, 10)
    net = ready(nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16)), x)
    assert find_pairs(net) == {}
    torch.testing.assert_close(mmgdrq.fold(net)(x), net(x), rtol=1e-4, atol=1e-4)
