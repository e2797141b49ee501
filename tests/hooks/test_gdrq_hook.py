"""GDRQHook under real runners."""

import copy
from unittest import mock

import pytest
import torch
from mmengine.registry import LOOPS, MODELS
from mmengine.runner import IterBasedTrainLoop, Runner

import mmgdrq
from mmgdrq.convert import is_quantized_model
from mmgdrq.errors import ConfigError, MMGDRQError, QuantizationError
from mmgdrq.layers import activation_quantizer
from tests.toy import Recorder, ToyModel, log_of, thresholds, toy_config, toy_runner

ITERS = 3  # iterations an epoch


def error_of(runner) -> MMGDRQError:
    """The error that ends ``runner.train()``."""
    with pytest.raises(MMGDRQError) as caught:
        runner.train()
    return caught.value


def stage_now(runner) -> str:
    return mmgdrq.get_stage(runner.model)


def weights(runner) -> dict:
    return {name: p.detach().clone() for name, p in runner.model.named_parameters()}


def statistics(model) -> dict:
    """Ranges and BN statistics."""
    found = {k: v.clone() for k, v in model.state_dict().items() if 'running' in k}
    return {**found, **thresholds(model)}


def unequal(a: dict, b: dict) -> list:
    return [key for key in a if not torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key]))]


def by_iterations(count: int) -> dict:
    return dict(type='IterBasedTrainLoop', max_iters=count, val_interval=100)


# ------------------------------------------------------------------ what the hook does to the model


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
    assert log.count(runner.model.gdrq_plan.summary()) == 1
    for row in runner.model.gdrq_plan:
        assert f'\n{row.name} ' in log


# ------------------------------------------------------------------ stages


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


# ------------------------------------------------------------------ Scale-Clip


def wide(runner) -> None:
    """Give a filter of the second convolution one outlier; Scale-Clip has to cut it."""
    with torch.no_grad():
        runner.model.conv2.weight[0, 0, 0, 0] = 10.0


class Widen(Recorder):
    """Puts an outlier into the weight before the first iteration."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == 0:
            wide(runner)


def outlier(runner) -> float:
    return float(runner.model.conv2.weight[0, 0, 0, 0])


@pytest.mark.parametrize(
    ('hook', 'clipped'),
    [
        (dict(), True),
        (dict(scale_clip=False), False),
        (dict(stages=dict(quantize=5)), False),
        (dict(stages=dict(reshape=0, quantize=5)), True),
    ],
    ids=['quantize', 'off', 'float', 'reshape'],
)
def test_scale_clip_projects_in_its_stages(tmp_path, hook, clipped):
    runner = toy_runner(tmp_path, 1, hook, outlier)
    runner.register_hook(Widen())
    runner.train()
    assert (runner.recorder.seen[0] < 8) == clipped


def test_scale_clip_waits_for_the_real_step(tmp_path):
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05), accumulative_counts=3)
    runner = toy_runner(tmp_path, 2, dict(), weights, optim_wrapper=wrapper)
    runner.register_hook(Widen())
    runner.train()
    seen = runner.recorder.seen
    assert float(seen[0]['conv2.weight'][0, 0, 0, 0]) == 10.0, 'not projected while accumulating'
    for now, then in ((1, 0), (4, 3)):
        assert unequal(seen[now], seen[then]) == []
    assert 'conv2.weight' in unequal(seen[2], seen[1])
    assert float(seen[2]['conv2.weight'][0, 0, 0, 0]) < 8.0
    assert 'conv2.weight' in unequal(seen[5], seen[4])


def test_scale_clip_does_not_project_twice_after_a_second_train(tmp_path):
    """An outlier is cut to k * mean of the filter as it was: once a step, not more often."""
    runner = toy_runner(tmp_path, 1, dict(), outlier)
    runner.register_hook(Widen())
    zero = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0))
    runner.optim_wrapper = runner.build_optim_wrapper(copy.deepcopy(zero))
    start = runner.model.conv2.weight[0].detach().clone()
    start[0, 0, 0] = 10.0
    runner.train()
    assert runner.recorder.seen[0] == pytest.approx(2.0 * float(start.abs().mean()), rel=1e-5)


def test_bf16_autocast(tmp_path, monkeypatch):
    # AmpOptimWrapper asks for a GPU, although its bf16 autocast works on a CPU
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='SGD', lr=0.05))
    runner = toy_runner(tmp_path, 3, dict(), optim_wrapper=wrapper)
    start, inputs = weights(runner), []
    runner.model.conv2.register_forward_pre_hook(lambda m, args: inputs.append(args[0].dtype))
    runner.register_hook(Widen())
    runner.train()
    assert inputs[0] == torch.bfloat16, 'autocast is on'
    assert float(outlier(runner)) < 8.0, 'Scale-Clip runs'
    assert torch.tensor(runner.recorder.losses).isfinite().all()
    assert runner.model.conv2.weight.dtype == torch.float32
    assert runner.model.conv2.activation_quantizer.threshold.dtype == torch.float32
    assert 'conv2.weight' in unequal(start, weights(runner))
    # the ranges are those of float32 training, up to the rounding of bf16 inputs
    same = toy_runner(tmp_path / 'float', 3, dict())
    same.register_hook(Widen())
    same.train()
    wanted, found = thresholds(same.model), thresholds(runner.model)
    assert found == pytest.approx(wanted, rel=0.25)


def test_scale_clip_hook_alone(tmp_path):
    model = dict(type='mmgdrq.Quantized', base_type='ToyModel')
    runner = toy_runner(tmp_path, 1, None, outlier, model=model, custom_hooks=[dict(type='mmgdrq.ScaleClipHook')])
    runner.register_hook(Widen())
    runner.train()
    assert runner.recorder.seen[0] < 8.0


@MODELS.register_module()
class RegisteredModel(ToyModel):
    """A frozen stem in eval mode, as ``frozen_stages`` makes it, and a convolution that is called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = mmgdrq.Conv2d(3, 3, 1), mmgdrq.Conv2d(3, 3, 1)
        self.stem.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, inputs, *args, **kwargs):
        once = self.shared(self.stem(inputs))
        return super().forward(once + self.shared(3 * once), *args, **kwargs)


@pytest.mark.parametrize('hook', ['ScaleClipHook', 'GDRQHook'])
def test_registered_layers_of_a_runner(tmp_path, hook):
    hooks = [dict(type=f'mmgdrq.{hook}')]
    runner = toy_runner(tmp_path, 1, None, model=dict(type='RegisteredModel'), custom_hooks=hooks)
    steps = []
    shared = runner.model.shared.activation_quantizer
    update = activation_quantizer._step_alike

    def count(quantizers):
        steps.extend(q for q in quantizers if q is shared)
        update(quantizers)

    with mock.patch.object(activation_quantizer, '_step_alike', count):
        runner.train()
    assert shared.layer_name == 'shared'
    assert float(runner.model.stem.activation_quantizer.threshold) > 0
    # the first iteration calibrates, and the last one's step is taken when the model is evaluated or saved
    assert len(steps) == runner.iter - 1


def test_scale_clip_hook_needs_a_quantized_model(tmp_path):
    runner = toy_runner(tmp_path, custom_hooks=[dict(type='mmgdrq.ScaleClipHook')])
    assert 'GDRQHook' in str(error_of(runner))


# ------------------------------------------------------------------ mistakes


def test_misspelled_key_of_the_hook(tmp_path):
    with pytest.raises(Exception, match=r"weigth.*'weight'"):
        toy_runner(tmp_path, hook=dict(weigth=dict(bits=2)))


@pytest.mark.parametrize('value', ['no', 'False', 0, None, dict(k=2)])
def test_scale_clip_is_on_or_off(tmp_path, value):
    with pytest.raises(ConfigError, match=r'GDRQHook: scale_clip=.* is not True or False'):
        toy_runner(tmp_path, hook=dict(scale_clip=value))


@pytest.mark.parametrize(
    ('hook', 'words'),
    [
        (dict(weight=dict(bit=2)), ('weight', "'bit'", "'bits'")),
        (dict(activation=dict(bits=1)), ('activation', 'bits=1')),
        (dict(rules=[dict(pattern='nekc', skip=True)]), ('rules[0]', 'nekc')),
        (dict(rules=[dict(patern='head', skip=True)]), ('rules[0]', "'pattern'")),
        (dict(weight=dict(range='learned')), ('learned', 'mmgdrq.Quantized')),
        (dict(activation=dict(range='learned')), ('learned', 'mmgdrq.Quantized')),
        (
            dict(rules=[dict(pattern='conv2', weight=dict(range='learned'))]),
            ('learned', 'mmgdrq.Quantized'),
        ),
    ],
)
def test_wrong_quantization_config(tmp_path, hook, words):
    error = error_of(toy_runner(tmp_path, hook=hook))
    assert isinstance(error, ConfigError)
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize('stages', [dict(quantise=1), dict(reshape=3, quantize=1), dict(quantize=-1), dict(freeze=1)])
def test_wrong_stages(tmp_path, stages):
    with pytest.raises(Exception, match='stages'):
        toy_runner(tmp_path, hook=dict(stages=stages))


def test_built_model_takes_no_second_weight(tmp_path):
    model = dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=dict(weight=dict(bits=3)))
    error = error_of(toy_runner(tmp_path, hook=dict(weight=dict(bits=2)), model=model))
    assert isinstance(error, ConfigError)
    assert 'GDRQHook.weight' in str(error)
    assert 'model.quant' in str(error)


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


@LOOPS.register_module(force=True)
class OwnIterLoop(IterBasedTrainLoop):
    """A loop by iterations with another name."""


@pytest.mark.parametrize('loop', ['IterBasedTrainLoop', 'OwnIterLoop'])
def test_stages_by_epoch_in_an_iteration_loop(tmp_path, loop):
    train = dict(by_iterations(2), type=loop)
    runner = toy_runner(tmp_path, hook=dict(stages=dict(quantize=1)), train_cfg=train)
    error = error_of(runner)
    assert isinstance(error, ConfigError)
    assert 'by_epoch=False' in str(error)


def test_efficient_conv_bn_eval_is_refused(tmp_path):
    runner = toy_runner(tmp_path, hook=dict(), efficient_conv_bn_eval='[backbone]')
    error = error_of(runner)
    assert isinstance(error, ConfigError)
    assert 'efficient_conv_bn_eval' in str(error)


def test_a_hook_that_would_quantize_nothing_is_an_error(tmp_path):
    error = error_of(toy_runner(tmp_path, hook=dict(rules=[dict(pattern='*', skip=True)])))
    assert isinstance(error, ConfigError)
    assert 'nothing would be quantized (skipped by rules[0])' in str(error)


def test_flexible_runner_needs_the_builder(tmp_path):
    from mmengine.runner import FlexibleRunner

    config = toy_config(tmp_path, hook=dict(), strategy=dict(type='SingleDeviceStrategy'), env_cfg=dict())
    error = error_of(FlexibleRunner.from_cfg(config))
    assert isinstance(error, ConfigError)
    assert 'mmgdrq.Quantized' in str(error)
    assert 'FlexibleRunner' in str(error)


def test_runner_without_the_hook_stays_float(tmp_path):
    runner = Runner.from_cfg(toy_config(tmp_path))
    runner.train()
    assert not is_quantized_model(runner.model)
