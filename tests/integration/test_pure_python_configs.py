"""Configs in mmengine's pure Python style, whose types are classes: the tools do with them what they do with names."""

import json

import pytest
import torch
from mmengine.config import Config

import mmgdrq
from mmgdrq.openmmlab.commands import plan, test, train
from mmgdrq.openmmlab.commands.plan import plan_of
from mmgdrq.openmmlab.commands.run import run_tool
from tests.helpers.toy import ToyModel, toy_config

TEXT = """
from mmengine.dataset import DefaultSampler, default_collate
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from torch.optim import SGD

from mmgdrq import GDRQHook, build_quantized
from tests.helpers.toy import ToyData, ToyMetric, ToyModel

custom_imports = dict(imports=['mmgdrq', 'tests.helpers.toy'], allow_failed_imports=False)
loader = dict(
    dataset=dict(type=ToyData),
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=default_collate),
)
train_dataloader = val_dataloader = test_dataloader = loader
model = {model}
work_dir = {work_dir!r}
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.05))
val_cfg, test_cfg = dict(type=ValLoop), dict(type=TestLoop)
val_evaluator = test_evaluator = dict(type=ToyMetric)
custom_hooks = {hooks}
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1), logger=dict(type=LoggerHook))
randomness = dict(seed=0)
default_scope = 'mmengine'
log_level = 'INFO'
"""
WAYS = {
    'hook': ('dict(type=ToyModel)', '[dict(type=GDRQHook, weight=dict(bits=3))]'),
    'builder': (
        'dict(type=build_quantized, base_type=ToyModel, quant=dict(weight=dict(bits=3)))',
        '[dict(type=GDRQHook)]',
    ),
}


@pytest.fixture(params=WAYS)
def config(request, tmp_path):
    model, hooks = WAYS[request.param]
    path = tmp_path / 'pure.py'
    path.write_text(TEXT.format(model=model, hooks=hooks, work_dir=str(tmp_path / 'run')), encoding='utf-8')
    return path


def test_the_plan_is_that_of_a_config_with_names(config, tmp_path, capsys):
    expected = plan_of(toy_config(tmp_path / 'other', 1, dict(weight=dict(bits=3))), 'toy')
    run_tool(lambda: plan.main([str(config)]))
    assert capsys.readouterr().out.strip().endswith(str(expected))


def test_training_and_test(config, tmp_path, monkeypatch):
    """Checkpoints are saved whole, as with a config of names, and the dumped config can be read."""
    run_tool(lambda: train.main([str(config)]))
    checkpoint = tmp_path / 'run/epoch_1.pth'
    dumped = tmp_path / 'run/pure.py'
    assert Config.fromfile(dumped).default_hooks.checkpoint.type == 'mmgdrq.CheckpointHook'
    scores = []
    for file in (config, dumped):
        metrics = tmp_path / f'{len(scores)}.json'
        run_tool(lambda file=file, metrics=metrics: test.main([str(file), str(checkpoint), '--metrics', str(metrics)]))
        scores.append(json.loads(metrics.read_text(encoding='utf-8')))
    assert scores[0] == scores[1] != {}


def test_the_builder_takes_a_class():
    quant = dict(weight=dict(bits=3))
    torch.manual_seed(0)
    named = mmgdrq.build_quantized('ToyModel', quant=quant)
    torch.manual_seed(0)
    of_class = mmgdrq.build_quantized(ToyModel, quant=quant)
    assert type(of_class) is ToyModel
    assert str(mmgdrq.state(of_class).plan) == str(mmgdrq.state(named).plan)
    for key, value in named.state_dict().items():
        assert torch.equal(of_class.state_dict()[key], value), key


def test_a_wrong_key_names_the_class():
    with pytest.raises(mmgdrq.errors.ConfigError, match=r'keys of ToyModel, which has no weight'):
        mmgdrq.build_quantized(ToyModel, weight=dict(bits=3))
