"""Mistakes in the config of the hooks: one error that says what to do."""

import pytest
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop

from mmgdrq import GDRQHook
from mmgdrq.errors import ConfigError
from tests.helpers.toy import by_iterations, error_of, toy_config, toy_runner


def test_misspelled_key_of_the_hook(tmp_path):
    with pytest.raises(Exception, match=r"weigth.*'weight'"):
        toy_runner(tmp_path, hook=dict(weigth=dict(bits=2)))


@pytest.mark.parametrize('value', ['no', 'False', 0, None, dict(k=2)])
def test_scale_clip_is_on_or_off(tmp_path, value):
    with pytest.raises(ConfigError, match=r'scale_clip=.* is not True or False'):
        toy_runner(tmp_path, hook=dict(scale_clip=value))


@pytest.mark.parametrize(
    ('hook', 'words'),
    [
        (dict(weight=dict(bit=2)), ('weight', "'bit'", "'bits'")),
        (dict(activation=dict(bits=1)), ('activation', 'bits=1')),
        (dict(rules=[dict(patern='head', skip=True)]), ('rules[0]', "'pattern'")),
        (dict(rules=[dict(pattern='head', weight=dict(bit=2))]), ('rules[0].weight', "'bit'", "'bits'")),
        (dict(rules=[dict(pattern='head', activation=dict(bits=9))]), ('rules[0].activation', 'bits=9')),
        (dict(execution=dict(cach=True)), ('execution', "'cach'", "'cache'")),
        (dict(execution=dict(cache=1)), ('execution', 'cache=1')),
        (dict(deploy='tensorrt'), ("deploy='tensorrt'", "'onnxruntime'")),
    ],
)
def test_a_wrong_value_is_an_error_when_the_hook_is_made(hook, words):
    with pytest.raises(ConfigError) as caught:
        GDRQHook(**hook)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ('hook', 'words'),
    [
        (dict(rules=[dict(pattern='nekc', skip=True)]), ('rules[0]', 'nekc')),
        (dict(weight=dict(range='learned')), ('learned', 'mmgdrq.Quantized')),
        (dict(activation=dict(range='learned')), ('learned', 'mmgdrq.Quantized')),
        (
            dict(rules=[dict(pattern='conv2', weight=dict(range='learned'))]),
            ('learned', 'mmgdrq.Quantized'),
        ),
    ],
)
def test_what_only_the_model_shows(tmp_path, hook, words):
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
