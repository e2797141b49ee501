"""One object says how a model is quantized, and is checked when it is made."""

import copy
import pickle
from dataclasses import FrozenInstanceError, fields

import pytest
from mmengine.config import ConfigDict

from mmgdrq import QuantConfig
from mmgdrq.config.quant_config import KEYS
from mmgdrq.errors import ConfigError
from mmgdrq.planning.rules import Rule
from mmgdrq.quant import ActivationSpec, WeightSpec
from mmgdrq.quantized_model.execution import Execution
from mmgdrq.training.distillation.settings import Distillation
from mmgdrq.training.schedule import Schedule

WHOLE = dict(
    weight=dict(bits=3, group_size=4),
    activation=dict(bits=5),
    rules=[dict(pattern='neck', weight=dict(bits=4)), dict(kind='linear', skip=True)],
    stages=dict(reshape=0, quantize=2),
    scale_clip=False,
    execution=dict(cache=False),
    deploy='onnxruntime',
    distill=dict(weight=0.5),
)


def test_its_parts_are_the_objects_of_the_parts():
    config = QuantConfig.from_config(WHOLE, 'quant')
    assert config == QuantConfig(
        weight=WeightSpec(bits=3, group_size=4),
        activation=ActivationSpec(bits=5),
        rules=(Rule(pattern='neck', weight=dict(bits=4)), Rule(kind='linear', skip=True)),
        stages=Schedule(reshape=0, quantize=2),
        scale_clip=False,
        execution=Execution(cache=False),
        deploy='onnxruntime',
        distill=Distillation(weight=0.5),
    )
    assert config == QuantConfig(**WHOLE)
    assert set(WHOLE) == set(KEYS) == {field.name for field in fields(QuantConfig)}
    with pytest.raises(FrozenInstanceError):
        config.scale_clip = True


def test_configs_of_mmengine_are_taken_and_copies_are_equal():
    config = QuantConfig.from_config(ConfigDict(WHOLE), 'quant')
    assert config == QuantConfig(**WHOLE)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


def test_the_defaults():
    for config in (QuantConfig(), QuantConfig.from_config({}, 'quant'), QuantConfig.from_config(dict(weight=None), '')):
        assert (config.weight, config.activation, config.rules) == (WeightSpec(), ActivationSpec(), ())
        assert {config.stages, config.execution, config.deploy, config.distill} == {None}
        assert config.scale_clip is True
        assert config.schedule == Schedule()


@pytest.mark.parametrize(
    ('config', 'match'),
    [
        (dict(weigth={}), r"quant: unknown key 'weigth'. Did you mean 'weight'\? Valid keys: weight, .*, place$"),
        (dict(weight=dict(bit=2)), "weight: unknown key 'bit'. Did you mean 'bits'"),
        (dict(weight=2), 'weight: expected a dict'),
        (dict(activation=dict(bits=1)), 'activation: bits=1'),
        (dict(rules='neck'), 'rules: expected a list of dicts'),
        (dict(rules=[dict(patern='neck', skip=True)]), r"rules\[0\]: unknown key 'patern'. Did you mean 'pattern'"),
        (
            dict(rules=[dict(pattern='a', skip=True), dict(pattern='neck', weight=dict(bit=2))]),
            r"rules\[1\].weight: unknown key 'bit'. Did you mean 'bits'",
        ),
        (dict(rules=[dict(pattern='neck', activation=dict(k=-1))]), r'rules\[0\].activation: k=-1'),
        (dict(stages=dict(quantise=1)), "stages: unknown key 'quantise'. Did you mean 'quantize'"),
        (dict(stages=dict(reshape=3, quantize=1)), 'stages: .*not in this order'),
        (dict(stages=3), 'stages: expected a dict'),
        (dict(scale_clip=1), 'scale_clip=1 is not True or False'),
        (dict(scale_clip=None), 'scale_clip=None is not True or False'),
        (dict(execution=dict(cach=False)), "execution: unknown key 'cach'. Did you mean 'cache'"),
        (dict(execution=dict(cache=0)), 'execution: cache=0 is not True or False'),
        (dict(execution=False), 'execution: expected a dict'),
        (dict(distill=dict(temprature=2)), "distill: unknown key 'temprature'. Did you mean 'temperature'"),
        (dict(deploy='openvino'), "deploy='openvino': expected 'onnxruntime'"),
    ],
)
def test_a_wrong_value_names_the_key(config, match):
    with pytest.raises(ConfigError, match=match):
        QuantConfig.from_config(config, 'quant', others=['place'])
