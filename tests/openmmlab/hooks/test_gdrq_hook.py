"""GDRQHook under real runners: what it makes of the model, and its stages."""

import pytest
import torch
from mmengine.runner import Runner

import mmgdrq
from mmgdrq.errors import QuantizationError
from mmgdrq.layers.walk import is_quantized_model
from tests.helpers.toy import (
    ITERS,
    Recorder,
    by_iterations,
    error_of,
    log_of,
    stage_now,
    thresholds,
    toy_config,
    toy_runner,
    unequal,
    weights,
)


def test_parameters_stay_those_of_the_optimizer(tmp_path):
    runner = toy_runner(tmp_path, hook=dict())
    before = {name: id(p) for name, p in runner.model.named_parameters()}
    start = weights(runner)
    runner.train()
    assert {name: id(p) for name, p in runner.model.named_parameters()} == before
    held = {id(p) for group in runner.optim_wrapper.optimizer.param_groups for p in group['params']}
    assert held == set(before.values())
    assert sorted(unequal(start, weights(runner))) == sorted(before), 'every parameter is trained'


def test_bits_of_the_config_reach_the_layers(tmp_path):
    hook = dict(
        weight=dict(bits=3, group_size=2),
        activation=dict(bits=5),
        rules=[dict(pattern='head', skip=True)],
    )
    runner = toy_runner(tmp_path, hook=hook)
    runner.train()
    spec = runner.model.conv2.weight_quantizer.spec
    assert (spec.bits, spec.group_size) == (3, 2)
    assert runner.model.conv2.activation_quantizer.spec.bits == 5
    assert runner.model.conv1.weight_quantizer.spec.bits == 8, 'it reads the image'
    assert not hasattr(runner.model.head, 'weight_quantizer')
    weight = runner.model.conv2.weight_quantizer(runner.model.conv2.weight)
    assert all(len(pair.unique()) <= 8 for pair in weight.reshape(4, -1))


def test_model_is_quantized_before_a_checkpoint_is_loaded(tmp_path):
    trained = toy_runner(tmp_path / 'a', hook=dict())
    trained.train()
    again = toy_runner(tmp_path / 'b', hook=dict(), load_from=str(tmp_path / 'a/epoch_1.pth'))
    loaded = {}

    class Look(Recorder):
        def after_load_checkpoint(self, runner, checkpoint):
            loaded['quantized'] = is_quantized_model(runner.model)
            loaded['keys'] = list(checkpoint['state_dict'])

    again.register_hook(Look())
    again.test()
    assert loaded['quantized']
    assert thresholds(again.model) == thresholds(trained.model)
    assert list(again.model.state_dict()) == loaded['keys']


def test_plan_is_logged_once(tmp_path):
    runner = toy_runner(tmp_path, hook=dict())
    runner.train()
    runner.test()
    log = log_of(tmp_path)
    assert log.count('the quantization plan') == 1
    assert log.count(mmgdrq.state(runner.model).plan.summary()) == 1
    for row in mmgdrq.state(runner.model).plan:
        assert f'\n{row.name} ' in log


def test_runner_without_the_hook_stays_float(tmp_path):
    runner = Runner.from_cfg(toy_config(tmp_path))
    runner.train()
    assert not is_quantized_model(runner.model)


def statistics(model) -> dict:
    """Ranges and BN statistics."""
    found = {k: v.clone() for k, v in model.state_dict().items() if 'running' in k}
    return {**found, **thresholds(model)}


def test_stages_by_epoch(tmp_path):
    stages = dict(reshape=1, quantize=2, quantize_activation=3)
    runner = toy_runner(tmp_path, epochs=4, hook=dict(stages=stages), look=stage_now)
    runner.train()
    expected = ['float'] * 3 + ['reshape'] * 3 + ['quantize_weight'] * 3 + ['quantize'] * 3
    assert runner.recorder.seen == expected
    log = log_of(tmp_path)
    for stage in ('reshape', 'quantize_weight', 'quantize'):
        assert log.count(f"stage '{stage}' begins") == 1


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_stages_by_iteration(tmp_path, loop):
    changes = dict(train_cfg=by_iterations(6)) if loop == 'iterations' else {}
    stages = dict(reshape=1, quantize=4, by_epoch=False)
    runner = toy_runner(tmp_path, 2, dict(stages=stages), stage_now, **changes)
    runner.train()
    assert runner.recorder.seen == ['float'] + ['reshape'] * 3 + ['quantize'] * 2
    assert log_of(tmp_path).count("stage 'quantize' begins") == 1


def test_float_stage_equals_float_training(tmp_path):
    floating = toy_runner(tmp_path / 'a', epochs=2)
    floating.train()
    staged = toy_runner(tmp_path / 'b', epochs=2, hook=dict(stages=dict(quantize=5)))
    staged.train()
    assert staged.recorder.losses == floating.recorder.losses
    quantized = toy_runner(tmp_path / 'c', epochs=2, hook=dict())
    quantized.train()
    assert quantized.recorder.losses != floating.recorder.losses


def test_no_stages_quantize_from_the_first_iteration(tmp_path):
    runner = toy_runner(tmp_path, hook=dict(), look=stage_now)
    runner.train()
    assert runner.recorder.seen == ['quantize'] * 3


def test_iteration_loop_without_stages_needs_no_by_epoch(tmp_path):
    runner = toy_runner(tmp_path, 1, dict(), stage_now, train_cfg=by_iterations(2))
    runner.train()
    assert runner.recorder.seen == ['quantize'] * 2


def test_freeze_keeps_ranges_and_bn_statistics(tmp_path):
    runner = toy_runner(tmp_path, 4, dict(stages=dict(quantize=0, freeze=2)), lambda r: statistics(r.model))
    runner.train()
    seen = runner.recorder.seen
    before, frozen = seen[: 2 * ITERS], seen[2 * ITERS :]
    for now, then in zip(before[1:], before):
        assert {key.split('.')[-1] for key in unequal(now, then)} >= {'running_mean', 'conv2'}
    for later in frozen[1:]:
        assert unequal(frozen[0], later) == []
    for name in ('bn1.running_mean', 'bn1.running_var', 'bn2.running_mean', 'bn2.running_var'):
        assert torch.equal(before[-1][name], frozen[0][name])
    assert log_of(tmp_path).count('are frozen from here on') == 1


@pytest.mark.parametrize('first', ['reshape', 'quantize'])
def test_frozen_from_the_beginning_needs_ranges(tmp_path, first):
    frozen = dict(stages={first: 0, 'freeze': 0})
    error = error_of(toy_runner(tmp_path / 'a', 1, frozen))
    assert isinstance(error, QuantizationError)
    assert 'conv1: the activation ranges are frozen, but it has none' in str(error)
    trained = toy_runner(tmp_path / 'b', 1, dict())
    trained.train()
    checkpoint = str(tmp_path / 'b/epoch_1.pth')
    runner = toy_runner(tmp_path / 'c', 1, frozen, load_from=checkpoint)
    runner.train()
    assert thresholds(runner.model) == thresholds(trained.model)


def test_weights_are_still_trained_when_frozen(tmp_path):
    runner = toy_runner(tmp_path, 2, dict(stages=dict(quantize=0, freeze=1)), weights)
    runner.train()
    first, last = runner.recorder.seen[ITERS], runner.recorder.seen[-1]
    assert 'conv2.weight' in unequal(first, last)
    assert 'bn2.weight' in unequal(first, last)


def test_built_model_with_the_stages_of_the_builder(tmp_path):
    quant = dict(stages=dict(reshape=0, quantize=1))
    model = dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=quant)
    runner = toy_runner(tmp_path, 2, dict(), stage_now, model=model)
    runner.train()
    assert runner.recorder.seen == ['reshape'] * ITERS + ['quantize'] * ITERS


def test_built_model_with_the_stages_of_the_hook(tmp_path):
    model = dict(type='mmgdrq.Quantized', base_type='ToyModel')
    hook = dict(stages=dict(reshape=0, quantize=1))
    runner = toy_runner(tmp_path, 2, hook, stage_now, model=model)
    runner.train()
    assert runner.recorder.seen == ['reshape'] * ITERS + ['quantize'] * ITERS
