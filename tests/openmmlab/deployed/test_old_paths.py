"""Configs that earlier versions have dumped hold paths of classes that lie elsewhere now."""

import json

import pytest
from mmengine.config import Config

from mmgdrq.openmmlab.commands import test as command
from mmgdrq.openmmlab.commands.run import run_tool
from mmgdrq.openmmlab.deployed.deployed_config import parse_config
from mmgdrq.openmmlab.deployed.old_paths import OLD_PATHS, use_registered_names
from mmgdrq.registry import HOOKS, MODELS
from tests.helpers.toy import toy_config, toy_runner

HOOK = 'mmgdrq.hooks.gdrq.GDRQHook'


@pytest.mark.parametrize('path', OLD_PATHS)
def test_the_table_leads_to_registered_classes(path):
    scope, name = OLD_PATHS[path].split('.')
    registry = HOOKS if 'Hook' in name else MODELS
    built = registry.module_dict[name]
    assert scope == 'mmgdrq'
    assert built.__name__ == path.rpartition('.')[2]


def test_every_part_of_a_config():
    config = Config(dict(model=dict(neck=[dict(type='mmgdrq.layers.conv.Conv2d')]), custom_hooks=[dict(type=HOOK)]))
    use_registered_names(config._cfg_dict)
    assert config.model.neck[0].type == 'mmgdrq.Conv2d'
    assert config.custom_hooks[0].type == 'mmgdrq.GDRQHook'


def test_other_values_stay():
    config = dict(type='mmdet.RetinaNet', note=f'about {HOOK}', numbers=(1, 'a'), nothing=None)
    expected = dict(config)
    use_registered_names(config)
    assert config == expected


def test_a_deployed_directory(tmp_path):
    text = f"model = dict(type='ToyModel')\ncustom_hooks = [dict(type='{HOOK}', weight=dict(bits=3))]\n"
    assert parse_config(text, 'config.py')['custom_hooks'][0]['type'] == 'mmgdrq.GDRQHook'


def test_tools_read_a_dumped_config(tmp_path):
    toy_runner(tmp_path / 'run', 1, dict(weight=dict(bits=3))).train()
    cfg = toy_config(
        tmp_path / 'test', 1, dict(weight=dict(bits=3)), custom_imports=dict(imports=['tests.helpers.toy'])
    )
    cfg.custom_hooks[0]['type'] = HOOK
    cfg.dump(tmp_path / 'old.py')
    assert HOOK in (tmp_path / 'old.py').read_text(encoding='utf-8')
    metrics = tmp_path / 'metrics.json'
    arguments = [str(tmp_path / 'old.py'), str(tmp_path / 'run/epoch_1.pth'), '--metrics', str(metrics)]
    run_tool(lambda: command.main(arguments))
    assert json.loads(metrics.read_text(encoding='utf-8'))
