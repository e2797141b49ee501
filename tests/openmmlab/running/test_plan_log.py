"""The plan in the log, and what is missing there, for every way to a quantized model."""

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import Runner

import mmgdrq
from tests.helpers.toy import ToyModel, log_of, toy_config, toy_runner

QUANT = dict(weight=dict(bits=3))
BUILDER = dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=QUANT)
UNCLIPPED = "WARNING - mmgdrq: the model is trained without Scale-Clip. Add dict(type='mmgdrq.GDRQHook')"


def hooks(*names: str) -> list:
    return [dict(type=f'mmgdrq.{name}') for name in names]


@pytest.mark.parametrize(
    ('names', 'unclipped'),
    [([], 1), (['ScaleClipHook'], 0), (['GDRQHook'], 0), (['GDRQHook', 'ScaleClipHook'], 0)],
    ids=['no hook', 'Scale-Clip', 'GDRQ', 'both'],
)
def test_the_model_of_the_builder(tmp_path, names, unclipped):
    runner = toy_runner(tmp_path, 2, model=BUILDER, custom_hooks=hooks(*names))
    runner.train()
    runner.test()
    log = log_of(tmp_path)
    assert log.count('the quantization plan') == log.count(str(mmgdrq.state(runner.model).plan)) == 1
    assert log.count(UNCLIPPED) == unclipped


def test_scale_clip_that_was_turned_off_is_not_missed(tmp_path):
    toy_runner(tmp_path, hook=dict(scale_clip=False), model=BUILDER).train()
    assert UNCLIPPED not in log_of(tmp_path)


def test_weights_in_float_are_not_missed(tmp_path):
    model = dict(BUILDER, quant=dict(weight=dict(bits=32)))
    toy_runner(tmp_path, model=model).train()
    assert UNCLIPPED not in log_of(tmp_path)


def test_a_model_that_was_built_before_the_runner(tmp_path):
    """Its plan is not in the log of the run yet."""
    config = toy_config(tmp_path, hook={})
    runner = Runner(**{**config, 'model': MODELS.build(BUILDER)})
    runner.train()
    assert log_of(tmp_path).count(str(mmgdrq.state(runner.model).plan)) == 1


def log_in(tmp_path, name: str):
    """mmengine's current logger from here on, and its file."""
    path = tmp_path / f'{name}.log'
    MMLogger.get_instance(name, log_file=str(path))
    return path


def train(model, clip: bool) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    if clip:
        mmgdrq.ScaleClip(torch.nn.Sequential(model)).attach(optimizer)
    for _ in range(2):
        model.train()(torch.rand(2, 3, 8, 8)).sum().backward()
        optimizer.step()


@pytest.mark.parametrize('clip', [False, True])
def test_a_training_loop_of_ones_own(tmp_path, clip):
    path = log_in(tmp_path, f'own_loop_{clip}')
    train(MODELS.build(BUILDER), clip)
    log = path.read_text()
    assert log.count('the quantization plan') == 1
    assert log.count(UNCLIPPED) == (not clip)


def test_inference_and_calibration_need_neither_scale_clip_nor_a_plan(tmp_path):
    path = log_in(tmp_path, 'inference')
    model = MODELS.build(BUILDER)
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 8, 8))
    model.eval()(torch.rand(2, 3, 8, 8))
    assert path.read_text() == ''


@MODELS.register_module()
class PartlyRegistered(ToyModel):
    """Two registered layers, one with its input in float."""

    def __init__(self):
        super().__init__()
        self.conv1 = mmgdrq.Conv2d(3, 8, 3, weight=dict(bits=5, group_size=2), activation=dict(bits=32))
        self.conv2 = mmgdrq.Conv2d(8, 8, 3, weight=dict(bits=3), activation=dict(bits=6))
        self.extra = torch.nn.MultiheadAttention(8, 2, add_bias_kv=True)


def test_registered_layers_have_a_plan(tmp_path):
    model = dict(type='PartlyRegistered')
    toy_runner(tmp_path, model=model, custom_hooks=hooks('ScaleClipHook')).train()
    lines = [line.split() for line in log_of(tmp_path).splitlines()]
    assert ['conv1', 'Conv2d', '5', '32', '2', '216', '135', 'registered'] in lines
    assert ['conv2', 'Conv2d', '3', '6', '1', '576', '216', 'registered'] in lines
    assert ['head', 'Linear', '-', '-', '-', '32', '128', 'not', 'registered'] in lines
    assert any(line[:2] == ['extra', 'MultiheadAttention'] and 'add_bias_kv' in line for line in lines)
    assert '2 of 5 weight layers quantized' in log_of(tmp_path)
