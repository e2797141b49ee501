"""train -> resume -> test -> fold, by hook and by builder, with what runs add to a training.

EMA, stages and float starts are in tests/integration/test_lifecycle.py, two ranks in
tests/integration/test_distributed.py, and FlexibleRunner in tests/openmmlab/test_builder.py.
"""

import pytest
import torch
from mmengine.runner import Runner

import mmgdrq
from tests.helpers.toy import ToyData, thresholds, toy_config, toy_runner
from tests.helpers.toy import test_only as only_test

ITERS = 3  # an epoch
QUANT = dict(weight=dict(bits=3, group_size=3), activation=dict(bits=4))
BUILT = dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=QUANT)
WAYS = {'hook': dict(hook=QUANT), 'builder': dict(hook=None, model=BUILT)}
SGD = dict(type='SGD', lr=0.05, momentum=0.9)
AMP = dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=SGD)
EMA = dict(type='EMAHook', momentum=0.3)
ADDED = {
    'accumulation': dict(optim_wrapper=dict(type='OptimWrapper', optimizer=SGD, accumulative_counts=3)),
    'amp': dict(optim_wrapper=AMP),
    'amp and accumulation': dict(optim_wrapper=dict(AMP, accumulative_counts=3)),
    'clip_grad': dict(optim_wrapper=dict(type='OptimWrapper', optimizer=SGD, clip_grad=dict(max_norm=1.0))),
    'ema': dict(custom_hooks=[EMA]),
    'ema, amp and accumulation': dict(custom_hooks=[EMA], optim_wrapper=dict(AMP, accumulative_counts=3)),
    'activation checkpointing': dict(activation_checkpointing=['conv1', 'conv2']),
    'sync_bn': dict(sync_bn='torch'),
}


@pytest.fixture(autouse=True)
def _amp_on_a_cpu(monkeypatch):
    # AmpOptimWrapper asks for a GPU, although its bf16 autocast works on a CPU
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)


def settings_of(way: str, added: str) -> dict:
    """Arguments of toy_config."""
    settings = {**WAYS[way], **ADDED[added]}
    hooks = settings.get('custom_hooks', [])
    if hooks and way == 'hook':  # custom_hooks replace the hook that toy_config would add
        settings['custom_hooks'] = [*hooks, dict(type='mmgdrq.GDRQHook', **QUANT)]
    return settings


def evaluator(folder, name: str, **settings) -> Runner:
    """A runner that tests the last checkpoint of a training."""
    last = str(folder / name / 'epoch_2.pth')
    return Runner.from_cfg(only_test(toy_config(folder / f'{name}_tested', load_from=last, **settings)))


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('added', ADDED)
def test_a_resumed_training_tests_and_folds_like_the_whole_one(tmp_path, way, added):
    whole = toy_runner(tmp_path / 'a', 2, **settings_of(way, added))
    whole.train()
    start = str(tmp_path / 'a/epoch_1.pth')
    resumed = toy_runner(tmp_path / 'b', 2, load_from=start, resume=True, **settings_of(way, added))
    resumed.train()
    assert len(whole.recorder.losses) == 2 * ITERS
    assert resumed.recorder.losses == whole.recorder.losses[ITERS:]
    assert thresholds(resumed.model) == thresholds(whole.model)

    tested = [evaluator(tmp_path, name, **settings_of(way, added)) for name in ('a', 'b')]
    metrics = [runner.test()['toy/logits'] for runner in tested]
    assert metrics[0] == metrics[1]
    if 'ema' not in added:  # a test after a training in one process starts a new average
        assert metrics[0] == pytest.approx(whole.test()['toy/logits'], rel=1e-5)

    x = ToyData().images
    model = tested[1].model.eval()
    torch.testing.assert_close(mmgdrq.fold(model, x)(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.fixture
def compiler(request):
    """A backend of torch.compile that works here."""
    if torch.__version__ < '2.11':
        pytest.skip('the compiler of an older torch does not follow our layers')
    if request.param == 'inductor':
        try:
            torch.compile(torch.sin, backend='inductor')(torch.ones(2))
        except Exception as error:
            pytest.skip(f'inductor does not work here: {str(error).splitlines()[0]}')
    yield request.param
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ('way', 'compiler'), [('hook', 'eager'), ('builder', 'eager'), ('hook', 'inductor')], indirect=['compiler']
)
def test_a_compiled_training_is_the_same(tmp_path, compiler, way):
    """The losses are those of the plain formulation.

    Kernels add in another order, and a weight between two codes may follow the last bit of a sum.
    """
    quant = dict(QUANT, execution=dict(codes=False, kernels=False))
    settings = dict(hook=quant) if way == 'hook' else dict(hook=None, model=dict(BUILT, quant=quant))
    plain = toy_runner(tmp_path / 'a', 2, **settings)
    plain.train()
    compiled = toy_runner(tmp_path / 'b', 2, compile=dict(backend=compiler), **settings)
    compiled.train()
    assert compiled.recorder.losses == pytest.approx(plain.recorder.losses, rel=1e-4)
    assert thresholds(compiled.model) == pytest.approx(thresholds(plain.model), rel=1e-4)


def test_sync_bn_is_what_the_runner_makes_of_it(tmp_path):
    """The conversion makes new BN objects; without a process group they compute as BN does."""
    plain = toy_runner(tmp_path / 'a', 1, QUANT)
    plain.train()
    synced = toy_runner(tmp_path / 'b', 1, QUANT, sync_bn='torch')
    synced.train()
    assert synced.recorder.losses == plain.recorder.losses
