"""Scale-Clip under real runners, by GDRQHook and by its own hook."""

import copy
import warnings
from unittest import mock

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from mmengine.runner import Runner

import mmgdrq
from mmgdrq.layers.quantizers import activation_quantizer
from tests.helpers.toy import (
    Recorder,
    ToyModel,
    error_of,
    thresholds,
    toy_config,
    toy_runner,
    unequal,
    weights,
)


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


class TwoOptimizers(ToyModel):
    """One optimizer for the weights, another for the ranges."""

    def train_step(self, data, optim_wrapper):
        losses = self(**data, mode='loss')
        losses['loss'].backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
            wrapper.zero_grad()
        return losses


@pytest.mark.parametrize('hook', ['ScaleClipHook', 'GDRQHook'])
def test_the_optimizers_of_a_runner_are_looked_at_together(tmp_path, hook):
    model = mmgdrq.quantize(TwoOptimizers(), activation=dict(bits=4, range='learned'))
    ranges = [p for name, p in model.named_parameters() if 'quantizer' in name]
    weights = [p for name, p in model.named_parameters() if 'quantizer' not in name]
    wrappers = [OptimWrapper(torch.optim.SGD(part, 0.01)) for part in (weights, ranges)]
    config = toy_config(tmp_path, custom_hooks=[dict(type=f'mmgdrq.{hook}')])
    optimizers = OptimWrapperDict(weights=wrappers[0], ranges=wrappers[1])
    runner = Runner(**{**config, 'model': model, 'optim_wrapper': optimizers, 'default_hooks': dict(logger=None)})
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='mmgdrq: no optimizer holds')
        runner.train()
