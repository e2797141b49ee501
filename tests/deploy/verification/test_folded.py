"""A folded model that computes something else is found, and the layer is named."""

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.deploy import check_blocks, compare_blocks
from mmgdrq.errors import FoldError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def run(model):
    return model(X)


@pytest.fixture
def models():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )
    mmgdrq.quantize(net).train()
    net(X)
    return net.eval(), mmgdrq.fold(net, X)


def test_a_right_model_passes(models):
    net, folded = models
    errors = compare_blocks(net, folded, run)
    assert set(errors) == {'0', '3', '6'}
    assert max(errors.values()) < 1e-5
    check_blocks(errors, folded.gdrq_folded)
    hooks = [hook for module in net.modules() for hook in module._forward_hooks.values()]
    assert all(getattr(hook, '__module__', '') != 'mmgdrq.deploy.verification.folded' for hook in hooks)


def tamper_weight(folded):
    folded[3].weight.data.view(-1)[7] += 1


def tamper_norm(folded):
    folded[4].running_mean[2] += 1


def tamper_limits(folded):
    folded[3].input_codes.limits = (0, 3)


def tamper_step(folded):
    folded[3].input_codes.step.mul_(1.01)


def tamper_with_nan(folded):
    folded[3].weight.data.view(-1)[7] = float('nan')


@pytest.mark.parametrize('tamper', [tamper_weight, tamper_norm, tamper_limits, tamper_step, tamper_with_nan])
def test_a_tampered_layer_is_named(models, tamper):
    net, folded = models
    tamper(folded)
    errors = compare_blocks(net, folded, run)
    with pytest.raises(FoldError, match=r'the folded 3 \(BN: 4\) differs'):
        check_blocks(errors, folded.gdrq_folded)
    assert max(errors['0'], errors['6']) < 1e-5, 'a block gets right inputs whatever the ones before it do'


def test_a_tampered_layer_without_norm(models):
    net, folded = models
    folded[6].offset[1] += 0.5
    with pytest.raises(FoldError, match=r'the folded 6 \(BN: None\)'):
        check_blocks(compare_blocks(net, folded, run), folded.gdrq_folded)


def test_the_worst_of_all_calls_counts(models):
    net, folded = models
    tamper_limits(folded)

    def both(model):
        model(X * 10)
        model(X * 1e-3)

    large = compare_blocks(net, folded, lambda model: model(X * 10))
    assert compare_blocks(net, folded, both)['3'] >= large['3'] > 1e-2


def test_the_tolerance(models):
    errors, entries = {'0': 2e-3, '3': 1e-6}, models[1].gdrq_folded
    check_blocks(errors, entries, tolerance=1e-2)
    with pytest.raises(FoldError, match='the folded 0'):
        check_blocks(errors, entries, tolerance=1e-3)


def test_nothing_compared(models):
    net, folded = models
    errors = compare_blocks(net, folded, lambda model: None)
    with pytest.raises(FoldError, match='nothing was compared'):
        check_blocks(errors, folded.gdrq_folded)


def test_hooks_are_removed_after_an_error(models):
    net, folded = models
    before = [len(module._forward_hooks) for module in net.modules()]

    def fail(model):
        raise RuntimeError('no data')

    with pytest.raises(RuntimeError, match='no data'):
        compare_blocks(net, folded, fail)
    assert [len(module._forward_hooks) for module in net.modules()] == before
