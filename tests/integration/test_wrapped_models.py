"""A quantized model inside another module folds as it does alone."""

import copy

import pytest
import torch
from torch import nn

import mmgdrq
from mmgdrq.deploy import check_blocks, compare_blocks, load_folded, save_folded
from mmgdrq.errors import FoldError
from tests.helpers.folding import IMAGE, ready

WRAPPERS = {'sequence': lambda net: nn.Sequential(net, nn.Identity()), 'parallel': nn.DataParallel}


@pytest.fixture
def net():
    """With a BN behind a folded layer and behind one that is stored."""
    torch.manual_seed(0)
    conv, up = nn.Conv2d(4, 6, 3, bias=False), nn.ConvTranspose2d(6, 6, 2)
    return ready(nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), up, nn.BatchNorm2d(6)), IMAGE)


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize('example', [None, IMAGE], ids=['by structure', 'by trace'])
def test_it_folds_loads_and_verifies_as_the_bare_one(net, wrap, example, tmp_path):
    bare, wrapped = mmgdrq.fold(net, example), wrap(net)
    folded = mmgdrq.fold(wrapped, example)
    assert torch.equal(folded(IMAGE), bare(IMAGE))
    assert [entry.kind for entry in folded.gdrq_folded.values()] == ['conv', 'stored']
    check_blocks(compare_blocks(wrapped, folded, lambda model: model(IMAGE)), folded.gdrq_folded)
    loaded = load_folded(wrap(copy.deepcopy(net)), save_folded(folded, tmp_path / 'out'))
    assert torch.equal(loaded(IMAGE), bare(IMAGE))


@pytest.mark.parametrize('stage', ['float', 'reshape', 'quantize_weight'])
@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS)
def test_a_stage_without_rounding_is_refused(net, wrap, stage):
    mmgdrq.set_stage(net, stage)
    with pytest.raises(FoldError, match=f"fold: (0|module) is in stage '{stage}', without rounding"):
        mmgdrq.fold(wrap(net), IMAGE)
