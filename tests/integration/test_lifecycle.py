"""Save, resume, test and load under real runners."""

import pytest
import torch
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.runner import Runner

import mmgdrq
from mmgdrq.errors import CheckpointError, QuantizationError
from mmgdrq.layers.walk import is_quantized_model
from mmgdrq.quantized_model.loading import quantization_keys
from tests.helpers.toy import test_only as only_test
from tests.helpers.toy import thresholds, toy_config, toy_runner

ITERS = 3  # iterations an epoch
STAGES = dict(reshape=1, quantize=2, quantize_activation=3, freeze=4)
EPOCHS = 6
EMA = dict(type='EMAHook', momentum=0.3)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run through all stages, with a checkpoint after every epoch."""
    runner = toy_runner(tmp_path_factory.mktemp('whole'), EPOCHS, dict(stages=STAGES))
    runner.train()
    return runner


def score(work_dir, checkpoint, hook, **changes) -> float:
    """Metric of a checkpoint in a runner that can only test."""
    config = only_test(toy_config(work_dir, hook=hook, load_from=str(checkpoint), **changes))
    return Runner.from_cfg(config).test()['toy/logits']


def with_ema(config):
    """Adds EMAHook to the config; before GDRQHook, since the priority has to decide."""
    config.custom_hooks = [EMA, *config.custom_hooks]
    return config


# ------------------------------------------------------------------ resume


@pytest.mark.parametrize(
    ('epoch', 'stage'),
    [(1, 'reshape'), (2, 'quantize_weight'), (3, 'quantize'), (4, 'frozen'), (5, 'frozen')],
)
def test_resume_goes_on_as_if_uninterrupted(tmp_path, whole, epoch, stage):
    checkpoint = f'{whole.work_dir}/epoch_{epoch}.pth'
    seen = {}

    def look(runner):
        if not seen:
            state = mmgdrq.state(runner.model)
            seen['stage'] = 'frozen' if state.frozen else state.stage

    resumed = toy_runner(tmp_path, EPOCHS, dict(stages=STAGES), look, load_from=checkpoint, resume=True)
    resumed.train()
    assert seen['stage'] == stage
    assert resumed.recorder.losses == whole.recorder.losses[epoch * ITERS :]
    end = resumed.model.state_dict()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(end[key], value), key


def test_resume_in_the_float_stage(tmp_path):
    hook = dict(stages=dict(quantize=2))
    whole = toy_runner(tmp_path / 'a', 3, hook)
    whole.train()
    resumed = toy_runner(tmp_path / 'b', 3, hook, load_from=str(tmp_path / 'a/epoch_1.pth'), resume=True)
    resumed.train()
    assert resumed.recorder.losses == whole.recorder.losses[ITERS:]


def test_saving_does_not_change_the_training(tmp_path, whole):
    never = dict(checkpoint=dict(type='CheckpointHook', interval=100, save_last=False))
    runner = toy_runner(tmp_path, EPOCHS, dict(stages=STAGES), default_hooks=never)
    runner.train()
    assert runner.recorder.losses == whole.recorder.losses


def test_evaluation_does_not_change_the_training(tmp_path, whole):
    train = dict(type='EpochBasedTrainLoop', max_epochs=EPOCHS, val_interval=1)
    runner = toy_runner(tmp_path, EPOCHS, dict(stages=STAGES), train_cfg=train)
    runner.train()
    assert runner.recorder.losses == whole.recorder.losses


def test_resume_with_ema(tmp_path):
    def run(name, **changes):
        custom_hooks = [EMA, dict(type='mmgdrq.GDRQHook')]
        runner = toy_runner(tmp_path / name, 3, None, custom_hooks=custom_hooks, **changes)
        runner.train()
        return runner, runner.test()['toy/logits']

    whole, metric = run('a')
    resumed, again = run('b', load_from=str(tmp_path / 'a/epoch_1.pth'), resume=True)
    assert resumed.recorder.losses == whole.recorder.losses[ITERS:]
    assert again == pytest.approx(metric, rel=1e-6)


# ------------------------------------------------------------------ EMA


def test_ema_copy_is_quantized_and_its_weights_are_evaluated(tmp_path):
    config = with_ema(toy_config(tmp_path / 'a', 2, dict()))
    config.train_cfg.val_interval = 2
    runner = Runner.from_cfg(config)
    runner.train()
    hook = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook')
    assert is_quantized_model(hook.ema_model.module)
    assert len(mmgdrq.state(hook.ema_model.module).plan.quantized) == 3

    averaged = runner.message_hub.get_scalar('val/toy/logits').current()
    checkpoint = tmp_path / 'a/epoch_2.pth'
    ema = with_ema(only_test(toy_config(tmp_path / 'b', hook=dict(), load_from=str(checkpoint))))
    assert Runner.from_cfg(ema).test()['toy/logits'] == pytest.approx(averaged, rel=1e-6)

    state = torch.load(checkpoint)['state_dict']
    shadow = hook.ema_model.module.conv2.weight
    assert torch.equal(state['conv2.weight'], shadow)
    assert not torch.equal(runner.model.conv2.weight, shadow)
    # the weights of the checkpoint are the averaged ones, so a run without EMA sees them as well
    assert score(tmp_path / 'c', checkpoint, dict()) == pytest.approx(averaged, rel=1e-6)


def test_ema_averages_the_clipped_weights(tmp_path):
    custom_hooks = [dict(type='EMAHook', momentum=0.5), dict(type='mmgdrq.GDRQHook')]

    def look(runner):
        hook = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook')
        layers = hook.ema_model.module.conv2, runner.model.conv2
        return [layer.weight.detach().clone() for layer in layers]

    runner = toy_runner(tmp_path, 1, None, look, custom_hooks=custom_hooks)
    with torch.no_grad():
        runner.model.conv2.weight[:, 0, 0, 0] = 10.0
    runner.train()
    (average, weight), *later = runner.recorder.seen
    assert torch.equal(average, weight), 'the average starts from the clipped weight'
    assert weight.max() < 8.0
    for now, weight in later:
        torch.testing.assert_close(now, average.lerp(weight, 0.5))
        average = now


# ------------------------------------------------------------------ test


def test_checkpoint_gives_the_same_metric(tmp_path):
    runner = toy_runner(tmp_path / 'a', 2, dict())
    runner.train()
    metric = runner.test()['toy/logits']
    checkpoint = tmp_path / 'a/epoch_2.pth'
    assert score(tmp_path / 'b', checkpoint, dict()) == pytest.approx(metric, rel=1e-6)
    other = dict(weight=dict(bits=2, k=1.0))
    with pytest.raises(CheckpointError, match='k=1'):
        score(tmp_path / 'c', checkpoint, other)


def test_builder_reads_the_checkpoint_of_the_hook(tmp_path):
    runner = toy_runner(tmp_path / 'a', 2, dict(weight=dict(bits=3)))
    runner.train()
    metric = runner.test()['toy/logits']
    model = dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=dict(weight=dict(bits=3)))
    found = score(tmp_path / 'b', tmp_path / 'a/epoch_2.pth', None, model=model)
    assert found == pytest.approx(metric, rel=1e-6)


def test_train_then_test_then_validate_in_one_process(tmp_path):
    runner = toy_runner(tmp_path, 1, dict())
    runner.train()
    plan, ranges = mmgdrq.state(runner.model).plan, thresholds(runner.model)
    first = runner.test()['toy/logits']
    assert runner.val()['toy/logits'] == first
    assert runner.test()['toy/logits'] == first
    assert mmgdrq.state(runner.model).plan is plan
    assert thresholds(runner.model) == ranges, 'evaluation does not move the ranges'


@pytest.mark.parametrize(('epoch', 'stage'), [(2, 'reshape'), (3, 'quantize_weight')])
def test_checkpoint_is_evaluated_in_the_stage_it_was_saved_in(tmp_path, epoch, stage):
    hook = dict(stages=STAGES)
    train = dict(type='EpochBasedTrainLoop', max_epochs=epoch, val_interval=epoch)
    runner = toy_runner(tmp_path / 'a', epoch, hook, train_cfg=train)
    runner.train()
    metric = runner.message_hub.get_scalar('val/toy/logits').current()
    checkpoint = tmp_path / f'a/epoch_{epoch}.pth'
    config = only_test(toy_config(tmp_path / 'b', hook=hook, load_from=str(checkpoint)))
    tested = Runner.from_cfg(config)
    assert tested.test()['toy/logits'] == pytest.approx(metric, rel=1e-6)
    assert mmgdrq.get_stage(tested.model) == stage
    rounded = score(tmp_path / 'c', checkpoint, dict())
    assert rounded != pytest.approx(metric, rel=1e-4), 'without stages the network is quantized'


@MODELS.register_module()
class Augmented(BaseTTAModel):
    """Test-time augmentation with the image itself alone."""

    def test_step(self, data):
        return self.module.test_step(data)

    def merge_preds(self, data_samples_list):
        return data_samples_list


@pytest.mark.parametrize(('epoch', 'stage'), [(2, 'reshape'), (5, 'quantize')])
@pytest.mark.parametrize('builder', [False, True])
def test_test_time_augmentation(tmp_path, whole, epoch, stage, builder):
    """The model inside is the quantized one, in the stage of its checkpoint."""
    checkpoint = f'{whole.work_dir}/epoch_{epoch}.pth'
    plain = score(tmp_path / 'plain', checkpoint, dict(stages=STAGES))
    inner = dict(type='ToyModel')
    if builder:
        inner = dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=dict(stages=STAGES))
    model = dict(type='Augmented', module=inner)
    hooks = [dict(type='mmgdrq.GDRQHook', **({} if builder else dict(stages=STAGES)))]
    hooks.append(dict(type='mmgdrq.CheckpointFitHook', whole=True))
    config = only_test(toy_config(tmp_path / 'tta', load_from=checkpoint, model=model, custom_hooks=hooks))
    runner = Runner.from_cfg(config)
    assert runner.test()['toy/logits'] == plain
    assert mmgdrq.get_stage(runner.model.module) == stage


# ------------------------------------------------------------------ checkpoints that do not fit


@pytest.fixture(scope='module')
def float_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('float')
    toy_runner(folder).train()
    return folder / 'epoch_1.pth'


def test_float_checkpoint_starts_a_training(tmp_path, float_checkpoint):
    runner = toy_runner(tmp_path, 1, dict(), load_from=str(float_checkpoint))
    first = {}

    def look(model, args) -> None:
        first.setdefault('weight', model.conv2.weight.detach().clone())

    runner.model.register_forward_pre_hook(look)
    runner.train()
    saved = torch.load(float_checkpoint)['state_dict']
    assert not quantization_keys(saved)
    assert torch.equal(first['weight'], saved['conv2.weight'])
    assert all(value > 0 for value in thresholds(runner.model).values())


def test_float_checkpoint_cannot_be_tested_as_quantized(tmp_path, float_checkpoint):
    with pytest.raises(QuantizationError, match=r'conv1.*float checkpoint'):
        score(tmp_path, float_checkpoint, dict())


@pytest.mark.parametrize(
    ('hook', 'words'),
    [
        (dict(weight=dict(bits=3)), 'bits=2.*bits=3'),
        (dict(weight=dict(group_size=4)), 'group_size=1.*group_size=4'),
        (dict(weight=dict(grid='narrow_range')), "grid='twos_complement'.*grid='narrow_range'"),
        (dict(activation=dict(bits=3)), 'bits=4.*bits=3'),
        (dict(rules=[dict(pattern='conv2', skip=True)]), 'conv2'),
        (dict(weight=dict(range='search')), 'alpha'),
    ],
)
@pytest.mark.parametrize('resume', [False, True])
def test_checkpoint_of_another_quantization(tmp_path, whole, hook, words, resume):
    checkpoint = f'{whole.work_dir}/epoch_3.pth'
    runner = toy_runner(tmp_path, 5, hook, load_from=checkpoint, resume=resume)
    with pytest.raises(CheckpointError, match=words):
        runner.train()


def test_quantized_checkpoint_for_a_float_config(tmp_path, whole):
    """The tools add this hook, which says it before anything is loaded."""
    runner = toy_runner(
        tmp_path,
        load_from=f'{whole.work_dir}/epoch_3.pth',
        custom_hooks=[dict(type='mmgdrq.CheckpointFitHook')],
    )
    with pytest.raises(CheckpointError, match='float'):
        runner.test()


def test_checkpoint_without_some_ranges(tmp_path, whole):
    content = torch.load(f'{whole.work_dir}/epoch_6.pth')
    del content['state_dict']['conv2.activation_quantizer.threshold']
    torch.save(content, tmp_path / 'part.pth')
    with pytest.raises(CheckpointError, match=r'conv2\.activation_quantizer\.threshold'):
        score(tmp_path, tmp_path / 'part.pth', dict())


def test_truncated_checkpoint(tmp_path, whole):
    with open(f'{whole.work_dir}/epoch_6.pth', 'rb') as file:
        content = file.read()
    path = tmp_path / 'cut.pth'
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises((RuntimeError, OSError)):
        score(tmp_path, path, dict())
