"""Distillation under real runners: weights of the teacher, resume, checkpoints, averages."""

import pytest
import torch

import mmgdrq
from mmgdrq.errors import CheckpointError, ConfigError
from tests.helpers.toy import toy_config, toy_runner

HOOK = dict(weight=dict(bits=2), activation=dict(bits=4), distill=dict(temperature=2.0))


@pytest.fixture
def start(tmp_path) -> str:
    """A checkpoint of the float model."""
    runner = toy_runner(tmp_path / 'float', 1)
    runner.train()
    return str(tmp_path / 'float/epoch_1.pth')


def teacher_of(runner):
    hook = next(hook for hook in runner.hooks if isinstance(hook, mmgdrq.GDRQHook))
    return hook.teacher.network


def float_weights(path: str) -> dict:
    return torch.load(path, weights_only=True)['state_dict']


def assert_has_weights(teacher, weights: dict) -> None:
    assert all(torch.equal(value, weights[key]) for key, value in teacher.state_dict().items())


def test_the_teacher_has_the_weights_that_the_training_starts_from(tmp_path, start):
    runner = toy_runner(tmp_path, 1, HOOK, load_from=start)
    runner.train()
    assert_has_weights(teacher_of(runner), float_weights(start))
    assert not any('teacher' in key for key in torch.load(tmp_path / 'epoch_1.pth', weights_only=True)['state_dict'])


def test_without_a_checkpoint_it_has_the_weights_of_the_model(tmp_path):
    runner = toy_runner(tmp_path, 1, HOOK)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    assert_has_weights(teacher_of(runner), before)


def test_a_builder_has_a_teacher_too(tmp_path, start):
    quant = {key: HOOK[key] for key in ('weight', 'activation')}
    model = dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=quant)
    by_builder = toy_runner(tmp_path / 'b', 1, dict(distill=HOOK['distill']), model=model, load_from=start)
    by_builder.train()
    by_hook = toy_runner(tmp_path / 'h', 1, HOOK, load_from=start)
    by_hook.train()
    assert by_builder.recorder.losses == by_hook.recorder.losses


def test_a_resumed_training_is_an_uninterrupted_one(tmp_path, start):
    hook = dict(HOOK, distill=dict(HOOK['distill'], checkpoint=start))
    whole = toy_runner(tmp_path / 'whole', 2, hook, load_from=start)
    whole.train()
    first = toy_runner(tmp_path / 'cut', 1, hook, load_from=start)
    first.train()
    second = toy_runner(tmp_path / 'cut', 2, hook, load_from=str(tmp_path / 'cut/epoch_1.pth'), resume=True)
    second.train()
    assert [*first.recorder.losses, *second.recorder.losses] == whole.recorder.losses


def test_a_resumed_training_asks_for_the_weights_of_its_teacher(tmp_path, start):
    toy_runner(tmp_path, 1, HOOK, load_from=start).train()
    runner = toy_runner(tmp_path, 2, HOOK, load_from=str(tmp_path / 'epoch_1.pth'), resume=True)
    with pytest.raises(ConfigError, match=r'distill: the training is resumed.*checkpoint=FILE'):
        runner.train()


def test_weights_of_something_else_are_refused(tmp_path, start):
    other = toy_runner(tmp_path / 'other', 1, model=dict(type='ToyModel', channels=4))
    other.train()
    hook = dict(HOOK, distill=dict(checkpoint=str(tmp_path / 'other/epoch_1.pth')))
    with pytest.raises(CheckpointError, match=r'distill: .*cannot teach'):
        toy_runner(tmp_path, 1, hook, load_from=start).train()


def test_quantized_weights_are_refused(tmp_path, start):
    toy_runner(tmp_path, 1, dict(HOOK, distill=None), load_from=start).train()
    hook = dict(HOOK, distill=dict(checkpoint=str(tmp_path / 'epoch_1.pth')))
    with pytest.raises(CheckpointError, match='distill: '):
        toy_runner(tmp_path / 'again', 1, hook, load_from=start).train()


def test_averages_have_no_teacher(tmp_path, start):
    config = toy_config(tmp_path, 1, HOOK, load_from=start)
    config.custom_hooks.append(dict(type='EMAHook'))
    from mmengine.runner import Runner

    runner = Runner.from_cfg(config)
    runner.train()
    runner.val()
    plain = {
        key.removeprefix('module.') for key in torch.load(tmp_path / 'epoch_1.pth', weights_only=True)['ema_state_dict']
    }
    assert plain - {'steps'} == set(runner.model.state_dict())


def test_the_losses_are_in_the_log(tmp_path, start):
    runner = toy_runner(tmp_path, 1, HOOK, load_from=start)
    runner.train()
    assert 'train/loss_distill_logits' in runner.message_hub.log_scalars
    assert 'loss_distill_logits' in ' '.join(path.read_text() for path in tmp_path.glob('*/*.log'))


def test_the_builder_leaves_it_to_the_hook():
    with pytest.raises(ConfigError, match="unknown key 'distill'"):
        mmgdrq.build_quantized('ToyModel', dict(distill=dict()))
