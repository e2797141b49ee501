"""tools/plan.py prints the plan that a training has, and needs neither data nor weights for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

import mmgdrq
from mmgdrq.errors import ConfigError
from mmgdrq.openmmlab.commands import plan
from tests.helpers.toy import ToyModel, toy_config, toy_runner

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / 'tools/plan.py'
W2A4 = dict(weight=dict(bits=2), activation=dict(bits=4))
RULES = [dict(pattern='conv2', weight=dict(bits=4)), dict(pattern='head', skip=True)]


def plan_of(cfg):
    return plan.plan_of(cfg, 'CONFIG')


def built(**changes) -> dict:
    return dict(type='mmgdrq.Quantized', base_type='ToyModel', quant=dict(W2A4, rules=RULES), **changes)


SETTINGS = {
    'hook': dict(hook=dict(W2A4, rules=RULES)),
    'builder': dict(model=built()),
    'builder with the hook': dict(model=built(), hook=dict(stages=dict(reshape=0, quantize=1))),
}


@pytest.mark.parametrize('case', SETTINGS)
def test_the_plan_is_that_of_a_training(case, tmp_path):
    runner = toy_runner(tmp_path, **SETTINGS[case])
    runner.train()
    plan = plan_of(toy_config(tmp_path / 'planned', **SETTINGS[case]))
    assert plan == mmgdrq.state(runner.model).plan
    assert [(row.name, row.weight and row.weight.bits) for row in plan] == [('conv1', 8), ('conv2', 4), ('head', None)]
    assert not (tmp_path / 'planned').exists(), 'nothing is written'


@MODELS.register_module(force=True)
class LoadsAtOnce(ToyModel):
    """A model that would load weights while it is built, and knows its preprocessor."""

    def __init__(self, pretrained=None, data_preprocessor=None) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        assert pretrained is None, 'no weights are loaded'
        assert data_preprocessor['mean'] == [1.0], 'as the runner passes it on'


def test_no_weights_are_loaded_and_the_preprocessor_is_passed_on(tmp_path):
    missing = dict(load_from='no/such/file.pth', train_dataloader=dict(dataset=dict(type='ImageNet', data_root='no')))
    model = dict(type='LoadsAtOnce', pretrained='torchvision://resnet50')
    preprocessor = dict(type='ImgDataPreprocessor', mean=[1.0], std=[2.0])
    cfg = toy_config(tmp_path, hook=W2A4, model=model, data_preprocessor=preprocessor, **missing)
    assert len(plan_of(cfg).quantized) == 3


WRONG = {
    'no rule matches': (dict(hook=dict(rules=[dict(pattern='conv9', skip=True)])), "nearest layer name is 'conv"),
    'nothing is quantized': (dict(), 'CONFIG has no plan.*GDRQHook'),
    'no model': (dict(model=None), 'CONFIG has no model'),
    'quantized twice': (dict(model=built(), hook=W2A4), 'put it into model.quant'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_a_training_refuses_is_refused(case, tmp_path):
    settings, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        plan_of(toy_config(tmp_path, **settings))


def run(*arguments, status: int) -> str:
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == status, done.stdout[-4000:]
    return done.stdout


def test_the_tool_as_a_user_runs_it():
    path = ROOT / 'configs/gdrq/resnet18_in1k_w2a4.py'
    output = run(path, '--cfg-options', 'custom_hooks.0.weight.bits=3', status=0)
    plan = plan_of(Config.fromfile(path))
    assert [line.split()[0] for line in output.splitlines() if ' Conv2d ' in line or ' Linear ' in line] == [
        row.name for row in plan
    ]
    assert '21 of 21 weight layers quantized' in output
    assert 'backbone.layer1.0.conv1         Conv2d  3       4' in output


def test_the_tool_says_in_one_line_what_is_wrong():
    path = ROOT / 'configs/gdrq/resnet18_in1k_w2a4.py'
    output = run(path, '--cfg-options', 'custom_hooks.0.weight.bits=9', status=2)
    assert 'Traceback' not in output
    assert output.splitlines()[-1].startswith('error: weight: bits=9 is not possible')
