"""EMAHook beside the stages: the averaged model is the quantized one, with the ranges of the trained model."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

import mmgdrq
from mmgdrq.errors import ConfigError
from tests.helpers.toy import CLASSES, Recorder, ToyModel, thresholds, toy_config
from tests.helpers.toy import test_only as only_test

LATE = 2  # iterations in which the late head sees nothing, as a RoI head without RoIs
STAGES = dict(reshape=1, quantize=2)
EPOCHS = 4


@MODELS.register_module(force=True)
class LateModel(ToyModel):
    """Has a second head, whose inputs are empty in the first iterations."""

    def __init__(self, data_preprocessor=None) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.late = nn.Linear(8, CLASSES)
        self.calls = 0

    def forward(self, inputs, labels=None, mode='tensor'):
        self.calls += mode == 'loss'
        x = F.relu(self.bn1(self.conv1(inputs)))
        x = F.relu(self.bn2(self.conv2(x))).mean((2, 3))
        used = 0 if mode == 'loss' and self.calls <= LATE else len(x)
        logits = self.head(x) + F.pad(self.late(x[:used]), (0, 0, 0, len(x) - used))
        if mode == 'loss':
            return dict(loss=F.cross_entropy(logits, labels))
        return [dict(logits=row) for row in logits] if mode == 'predict' else logits


class Evaluated(Recorder):
    """Keeps what is evaluated: the averaged model, which EMAHook puts into the trained one."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        pass

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.seen.append(state(runner.model))


def state(model) -> dict:
    """Stage, and the flags and ranges of all inputs."""
    found = {key: value.clone() for key, value in model.state_dict().items() if 'activation_quantizer' in key}
    return {'stage': model.gdrq_stage.clone(), **found}


def config_of(work_dir, ema, hooks=None, **changes):
    hooks = [dict(type='mmgdrq.GDRQHook', stages=STAGES)] if hooks is None else hooks
    changes = dict(model=dict(type='LateModel'), **changes) if 'model' not in changes else changes
    ema = dict(dict(type='EMAHook', momentum=0.01, priority=49), **ema)
    return toy_config(work_dir, EPOCHS, None, custom_hooks=[ema, *hooks], **changes)


def trained(config):
    """A runner after training, with what its last validation has evaluated."""
    config.train_cfg.val_interval = EPOCHS
    runner = Runner.from_cfg(config)
    runner.evaluated = Evaluated()
    runner.register_hook(runner.evaluated)
    runner.train()
    return runner


def after_test(work_dir, checkpoint):
    """A runner without EMAHook after a test of a checkpoint."""
    hook = dict(stages=STAGES)
    config = only_test(toy_config(work_dir, hook=hook, load_from=str(checkpoint), model=dict(type='LateModel')))
    runner = Runner.from_cfg(config)
    runner.score = runner.test()['toy/logits']
    return runner


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


EMAS = {
    'copied buffers': dict(update_buffers=False),
    'averaged buffers': dict(update_buffers=True),
    'annealed': dict(update_buffers=True, ema_type='MomentumAnnealingEMA', gamma=3),
    'from iteration 5': dict(update_buffers=True, begin_iter=5),
    'from epoch 2': dict(update_buffers=True, begin_epoch=2),
    'every second iteration': dict(update_buffers=True, interval=2),
}


@pytest.mark.parametrize('ema', EMAS.values(), ids=EMAS)
def test_the_averaged_model_is_in_the_stage_and_has_the_ranges_of_the_trained_one(tmp_path, ema):
    runner = trained(config_of(tmp_path / 'a', ema))
    expected = state(runner.model)
    assert mmgdrq.get_stage(runner.model) == 'quantize'
    assert all(value > 0 for value in thresholds(runner.model).values())
    for seen in runner.evaluated.seen:
        assert_equal(seen, expected)
    found = after_test(tmp_path / 'b', tmp_path / f'a/epoch_{EPOCHS}.pth')
    assert mmgdrq.get_stage(found.model) == 'quantize'
    assert_equal(state(found.model), expected)
    assert not torch.equal(found.model.conv2.weight, runner.model.conv2.weight), 'the weights are averaged'
    score = runner.message_hub.get_scalar('val/toy/logits').current()
    assert found.score == pytest.approx(score, rel=1e-6)


def test_the_average_of_yolox(tmp_path):
    pytest.importorskip('mmdet.models.layers.ema')
    ema = dict(update_buffers=True, ema_type='mmdet.ExpMomentumEMA', momentum=0.0002)
    runner = trained(config_of(tmp_path, ema))
    for seen in runner.evaluated.seen:
        assert_equal(seen, state(runner.model))


@pytest.mark.parametrize('epoch', [1, 2, 3])
def test_resume(tmp_path, epoch):
    ema = dict(update_buffers=True)
    whole = trained(config_of(tmp_path / 'a', ema))
    changes = dict(load_from=str(tmp_path / f'a/epoch_{epoch}.pth'), resume=True)
    again = config_of(tmp_path / 'b', ema, **changes)
    runner = Runner.from_cfg(again)
    runner.model.calls = LATE + 1
    runner.train()
    ends = [torch.load(tmp_path / f'{name}/epoch_{EPOCHS}.pth') for name in 'ab']
    for key in ('state_dict', 'ema_state_dict'):
        assert_equal(ends[1][key], ends[0][key])
    assert int(ends[0]['state_dict']['gdrq_stage']) == int(whole.model.gdrq_stage)


@pytest.mark.parametrize('update_buffers', [False, True])
def test_the_average_of_a_learned_range_begins_with_the_range(tmp_path, update_buffers):
    quant = dict(activation=dict(range='learned'), weight=dict(range='learned'), stages=STAGES)
    model = dict(type='mmgdrq.Quantized', base_type='LateModel', quant=quant)
    hooks = [dict(type='mmgdrq.GDRQHook')]
    config = config_of(tmp_path, dict(update_buffers=update_buffers), hooks, model=model)
    config.optim_wrapper.optimizer.lr = 1e-4
    runner = trained(config)
    average = torch.load(tmp_path / f'epoch_{EPOCHS}.pth')['state_dict']
    for name, value in runner.model.state_dict().items():
        if name.endswith(('.threshold', '.alpha')):
            torch.testing.assert_close(average[name], value, rtol=0.1, atol=0.0)
    key = 'conv2.activation_quantizer.threshold'
    assert not torch.equal(average[key], runner.model.state_dict()[key]), 'it is an average'


def test_with_the_builder_and_scale_clip_alone(tmp_path):
    model = dict(type='mmgdrq.Quantized', base_type='LateModel', quant=dict(weight=dict(bits=2)))
    hooks = [dict(type='mmgdrq.ScaleClipHook')]
    runner = trained(config_of(tmp_path, dict(update_buffers=True), hooks, model=model))
    for seen in runner.evaluated.seen:
        assert_equal(seen, state(runner.model))


def test_the_copy_itself_can_be_evaluated(tmp_path):
    runner = trained(config_of(tmp_path, dict(update_buffers=True)))
    copy = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
    assert mmgdrq.get_stage(copy) == 'quantize'
    loaded = after_test(tmp_path / 'b', tmp_path / f'epoch_{EPOCHS}.pth').model.eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copy.eval()(images), loaded(images))


def test_a_copy_that_was_made_too_early_is_refused(tmp_path):
    runner = Runner.from_cfg(config_of(tmp_path, dict(update_buffers=True, priority='HIGHEST')))
    with pytest.raises(ConfigError, match=r'EMAHook: .* priority below that of GDRQHook'):
        runner.train()
