"""The tools, and tools/train.py with --resume, refuse a checkpoint of another model than the config's."""

import errno
import json
import os

import pytest
import torch

from mmgdrq.openmmlab.commands.runners import build_runner
from tests.helpers.toy import toy_config, toy_runner

from .test_checkpoints import MISFITS
from .test_hostile import run_tool

BUILT = dict(type='mmgdrq.Quantized', base_type='ToyModel')
IMPORTS = dict(custom_imports=dict(imports=['tests.helpers.toy']))
CONFIGS = {
    'other weight bits': (dict(weight=dict(bits=3)), {}),
    'other input bits': (dict(activation=dict(bits=3)), {}),
    'other groups': (dict(weight=dict(group_size=4)), {}),
    'other grid': (dict(weight=dict(grid='narrow_range')), {}),
    'other layers': (dict(rules=[dict(pattern='conv2', skip=True)]), {}),
    'built with other bits': (None, dict(model=dict(BUILT, quant=dict(weight=dict(bits=3))))),
    'float': (None, {}),
    'other width': (dict(), dict(model=dict(type='ToyModel', channels=12))),
}
"""Arguments of toy_config that do not build what was trained: GDRQHook's keys, and others."""

COMMANDS = {
    'test': ('test', '{config}', '{file}', '--metrics', '{out}'),
    'deploy': ('deploy', '{config}', '{file}', '--out', '{out}', '--rounds', '0'),
    'analyze': ('analyze', '{config}', '{file}', '--out', '{out}', '--batches', '0'),
    'resume': ('train', '{config}', '--resume', '{file}'),
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Checkpoints of a quantized and of a float training."""
    folder = tmp_path_factory.mktemp('trained')
    toy_runner(folder / 'quantized', 1, dict()).train()
    toy_runner(folder / 'float', 1).train()
    return folder


def refused(monkeypatch, capsys, folder, command: str, file, hook, **changes) -> str:
    """Run a tool that must end with one error line and write nothing; the line."""
    config = folder / 'config.py'
    toy_config(folder / 'run', 2, hook, **IMPORTS, **changes).dump(config)
    out = folder / 'out'
    name, *arguments = (part.format(config=config, file=file, out=out) for part in COMMANDS[command])
    assert run_tool(monkeypatch, name, *arguments) == 2
    assert not out.exists()
    assert not list((folder / 'run').glob('*.pth'))
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('error: ')
    return line


@pytest.mark.parametrize('command', COMMANDS)
@pytest.mark.parametrize('kind', CONFIGS)
def test_a_config_that_builds_something_else(tmp_path, monkeypatch, capsys, trained, kind, command):
    hook, changes = CONFIGS[kind]
    refused(monkeypatch, capsys, tmp_path, command, trained / 'quantized/epoch_1.pth', hook, **changes)


@pytest.mark.parametrize('command', COMMANDS)
@pytest.mark.parametrize('kind', MISFITS)
def test_a_checkpoint_that_holds_something_else(tmp_path, monkeypatch, capsys, trained, kind, command):
    content = torch.load(trained / 'quantized/epoch_1.pth', weights_only=False)
    content['state_dict'] = MISFITS[kind][0](content['state_dict'])
    torch.save(content, tmp_path / 'edited.pth')
    refused(monkeypatch, capsys, tmp_path, command, tmp_path / 'edited.pth', dict())


@pytest.mark.parametrize('command', [command for command in COMMANDS if command != 'analyze'])
def test_a_float_checkpoint_for_a_quantized_config(tmp_path, monkeypatch, capsys, trained, command):
    line = refused(monkeypatch, capsys, tmp_path, command, trained / 'float/epoch_1.pth', dict())
    assert 'float checkpoint' in line


@pytest.mark.parametrize('kind', ['float', 'quantized'])
def test_both_can_be_analyzed(tmp_path, monkeypatch, trained, kind):
    toy_config(tmp_path / 'run', 1, dict(), **IMPORTS).dump(tmp_path / 'config.py')
    arguments = (tmp_path / 'config.py', trained / kind / 'epoch_1.pth', '--out', tmp_path / 'out')
    assert run_tool(monkeypatch, 'analyze', *arguments) == 0
    assert {file.name for file in (tmp_path / 'out').iterdir()} == {'report.txt', 'report.json', 'weights.png'}
    assert [row['name'] for row in json.loads((tmp_path / 'out/report.json').read_text())] == ['conv1', 'conv2', 'head']


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch, trained):
    toy_config(tmp_path / 'run', 1, dict(), **IMPORTS).dump(tmp_path / 'config.py')
    arguments = ('--out', tmp_path / 'out', '--batches', '0')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/report.txt').write_text('earlier')

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    status = run_tool(monkeypatch, 'analyze', tmp_path / 'config.py', trained / 'float/epoch_1.pth', *arguments)
    assert status == 2
    assert [file.read_text() for file in (tmp_path / 'out').iterdir()] == ['earlier']


def test_a_negative_number_of_batches(tmp_path, monkeypatch, capsys, trained):
    toy_config(tmp_path / 'run', 1, dict(), **IMPORTS).dump(tmp_path / 'config.py')
    arguments = ('--out', tmp_path / 'out', '--batches', '-1')
    assert run_tool(monkeypatch, 'analyze', tmp_path / 'config.py', trained / 'float/epoch_1.pth', *arguments) == 2
    assert 'error: --batches -1: expected 0' in capsys.readouterr().err


@pytest.mark.parametrize('tool', ['deploy', 'analyze'])
def test_the_config_of_a_flexible_runner(tmp_path, monkeypatch, tool):
    changes = dict(runner_type='FlexibleRunner', strategy=dict(type='SingleDeviceStrategy'), env_cfg=dict())
    config = toy_config(tmp_path / 'run', 1, {}, model=dict(BUILT, quant={}), **IMPORTS, **changes)
    config.dump(tmp_path / 'config.py')
    build_runner(config).train()
    arguments = (tmp_path / 'config.py', tmp_path / 'run/epoch_1.pth', '--out', tmp_path / 'out')
    assert run_tool(monkeypatch, tool, *arguments) == 0
    report = json.loads((tmp_path / 'out/report.json').read_text())
    assert (report['layers'] if tool == 'deploy' else len(report)) == 3
