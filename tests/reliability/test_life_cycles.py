"""train -> resume -> test -> fold, by hook and by builder, with what runs add to a training.

EMA, stages and float starts are in tests/hooks/test_lifecycle.py, two ranks in tests/test_distributed.py, and
FlexibleRunner in tests/test_builder.py.
"""

import pytest
import torch
from mmengine.runner import Runner

import mmgdrq
from mmgdrq.quant import backend
from tests.toy import ToyData, thresholds, toy_config, toy_runner
from tests.toy import test_only as only_test

ITERS = 3  # an epoch
QUANT = dict(weight=dict(bits=3, group_size=3), activation=dict(bits=4))
BUILT = dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=QUANT)
WAYS = {'hook': dict(hook=QUANT), 'builder': dict(hook=None, model=BUILT)}
SGD = dict(type='SGD', lr=0.05, momentum=0.9)
ADDED = {
    'accumulation': dict(optim_wrapper=dict(type='OptimWrapper', optimizer=SGD, accumulative_counts=3)),
    'amp': dict(optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=SGD)),
    'clip_grad': dict(optim_wrapper=dict(type='OptimWrapper', optimizer=SGD, clip_grad=dict(max_norm=1.0))),
}


@pytest.fixture(autouse=True)
def _amp_on_a_cpu(monkeypatch):
    # AmpOptimWrapper asks for a GPU, although its bf16 autocast works on a CPU
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)


def settings_of(way: str, added: str) -> dict:
    return {**WAYS[way], **ADDED[added]}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('added', ADDED)
def test_a_resumed_training_tests_and_folds_like_the_whole_one(tmp_path, way, added):
    whole = toy_runner(tmp_path / 'a', 2, **settings_of(way, added))
    whole.train()
    start = str(tmp_path / 'a/epoch_1.pth')
    resumed = toy_runner(tmp_path / 'b', 2, load_from=start, resume=True, **settings_of(way, added))
    resumed.train()
    assert resumed.recorder.losses == whole.recorder.losses[ITERS:]
    assert thresholds(resumed.model) == thresholds(whole.model)

    last = str(tmp_path / 'b/epoch_2.pth')
    config = only_test(toy_config(tmp_path / 'c', load_from=last, **settings_of(way, added)))
    tested = Runner.from_cfg(config)
    metric = tested.test()['toy/logits']
    assert metric == pytest.approx(whole.test()['toy/logits'], rel=1e-5)

    x = ToyData().images
    folded = mmgdrq.fold(tested.model, x)
    torch.testing.assert_close(folded(x), tested.model.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.fixture
def kernels_back():
    """A model's execution switches kernels off in the whole process."""
    yield
    backend.enable(True)


@pytest.mark.skipif(torch.__version__ < '2.6', reason='the compiler of an older torch does not follow our layers')
def test_a_compiled_training_is_the_same(tmp_path, kernels_back):
    """torch.compile's capture, without its code generator; the losses are those of the plain formulation.

    Kernels add in another order, and a weight between two codes may follow the last bit of a sum.
    """
    hook = dict(QUANT, execution=dict(codes=False, kernels=False))
    plain = toy_runner(tmp_path / 'a', 2, hook)
    plain.train()
    compiled = toy_runner(tmp_path / 'b', 2, hook, compile=dict(backend='eager'))
    compiled.train()
    assert compiled.recorder.losses == pytest.approx(plain.recorder.losses, rel=1e-5)
    assert thresholds(compiled.model) == pytest.approx(thresholds(plain.model), rel=1e-5)


def test_sync_bn_is_what_the_runner_makes_of_it(tmp_path):
    """The conversion makes new BN objects; without a process group they compute as BN does."""
    plain = toy_runner(tmp_path / 'a', 1, QUANT)
    plain.train()
    synced = toy_runner(tmp_path / 'b', 1, QUANT, sync_bn='torch')
    synced.train()
    assert synced.recorder.losses == plain.recorder.losses
