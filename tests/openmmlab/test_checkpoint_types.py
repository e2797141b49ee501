"""Checkpoints under torch's weights_only: mmengine's load, hostile ones do not."""

import builtins
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

import mmgdrq
from mmgdrq.openmmlab.checkpoint_types import restricted_getattr
from mmgdrq.versions import check_versions
from tests.helpers.toy import toy_runner


def test_checkpoint_of_a_runner_loads(tmp_path):
    runner = toy_runner(tmp_path, 1, dict())
    runner.message_hub.update_info('best', np.float64(0.25))
    runner.train()
    content = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    history = content['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.current() == pytest.approx(runner.recorder.losses[-1])
    assert history.mean() == pytest.approx(np.mean(runner.recorder.losses))
    assert content['message_hub']['runtime_info']['best'] == 0.25


def test_message_hub_of_all_scalar_types_loads(tmp_path):
    hub = MessageHub.get_instance('test_compat_hub')
    hub.update_scalar('loss', np.float32(1.5))
    hub.update_scalar('loss', torch.tensor(2.5))
    for name in ('float16', 'float32', 'float64', 'int32', 'int64', 'uint8', 'bool'):
        hub.update_info(name, np.dtype(name).type(1))
    hub.update_info('array', np.arange(3.0))
    torch.save(dict(message_hub=hub.state_dict()), tmp_path / 'hub.pth')
    loaded = torch.load(tmp_path / 'hub.pth', weights_only=True)['message_hub']
    assert loaded['log_scalars']['loss'].max() == 2.5
    assert loaded['runtime_info']['float16'] == 1
    assert loaded['runtime_info']['array'].tolist() == [0.0, 1.0, 2.0]


def test_importing_mmgdrq_is_what_makes_it_load(tmp_path):
    """Without the import torch refuses the same file: the test above tests something."""
    torch.save(dict(history=HistoryBuffer([1.0, 2.0], [1, 1])), tmp_path / 'history.pth')
    load = f'import torch; torch.load({str(tmp_path / "history.pth")!r}, weights_only=True)'
    bare = subprocess.run([sys.executable, '-c', load], capture_output=True, text=True, check=False)
    assert bare.returncode != 0
    assert 'Weights only load failed' in bare.stderr
    with_it = subprocess.run(
        [sys.executable, '-c', 'import mmgdrq; ' + load],
        capture_output=True,
        text=True,
        check=False,
    )
    assert with_it.returncode == 0, with_it.stderr


# ------------------------------------------------------------------ hostile files


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(kind: str, marker: str):
    command = f'touch {marker}'
    if kind == 'os.system':
        return Calls(os.system, command)
    if kind == 'eval':
        return Calls(eval, f'open({marker!r}, "w")')
    if kind == 'getattr of os':
        return Calls(builtins.getattr, os, 'system')
    if kind == 'getattr chain':
        # HistoryBuffer.mean is allowed; from its globals one would reach everything
        function = Calls(builtins.getattr, HistoryBuffer, 'mean')
        return Calls(builtins.getattr, function, '__globals__')
    if kind == 'getattr of the class':
        return Calls(builtins.getattr, HistoryBuffer, '__init__')
    if kind == 'registered statistics':
        return Calls(HistoryBuffer.register_statistics, os.system)
    raise ValueError(kind)


class ModulePickler(pickle.Pickler):
    """Writes modules as imports, so that ``os`` can be an argument."""

    def reducer_override(self, obj):
        if obj is os:
            return __import__, ('os',)
        return NotImplemented


class HostilePickle:
    """Stands for the module ``pickle``."""

    Pickler = ModulePickler

    @staticmethod
    def dump(obj, file, protocol) -> None:
        ModulePickler(file, protocol).dump(obj)


KINDS = [
    'os.system',
    'eval',
    'getattr of os',
    'getattr chain',
    'getattr of the class',
    'registered statistics',
]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_hostile_checkpoint_is_refused(tmp_path, kind, legacy):
    marker, path = tmp_path / 'marker', tmp_path / 'bad.pth'
    torch.save(
        dict(state_dict=dict(w=torch.ones(1)), bad=hostile(kind, str(marker))),
        path,
        pickle_module=HostilePickle,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises((pickle.UnpicklingError, AttributeError)):
        torch.load(path, weights_only=True)
    assert not marker.exists()


@pytest.mark.parametrize('kind', ['os.system', 'eval'])
def test_hostile_checkpoint_would_run_without_weights_only(tmp_path, kind):
    """The files above are hostile indeed."""
    marker, path = tmp_path / 'marker', tmp_path / 'bad.pth'
    torch.save(dict(bad=hostile(kind, str(marker))), path)
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.fixture
def weights_only(monkeypatch):
    """What the tools set where torch does not by itself."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')


@pytest.mark.usefixtures('weights_only')
def test_runner_refuses_a_hostile_checkpoint(tmp_path):
    marker, path = tmp_path / 'marker', tmp_path / 'bad.pth'
    torch.save(dict(state_dict={}, meta=hostile('os.system', str(marker))), path)
    runner = toy_runner(tmp_path / 'run', 1, dict(), load_from=str(path))
    with pytest.raises(pickle.UnpicklingError):
        runner.train()
    assert not marker.exists()


# ------------------------------------------------------------------ getattr


@pytest.mark.parametrize('name', ['min', 'max', 'current', 'mean'])
def test_restricted_getattr_gives_the_statistics(name):
    assert restricted_getattr(HistoryBuffer, name) is getattr(HistoryBuffer, name)


class Child(HistoryBuffer):
    """A subclass could define a method of an allowed name."""


@pytest.mark.parametrize(
    ('owner', 'name'),
    [
        (HistoryBuffer, '__init__'),
        (HistoryBuffer, '__globals__'),
        (HistoryBuffer, 'statistics'),
        (HistoryBuffer, 'register_statistics'),
        (HistoryBuffer, '_statistics_methods'),
        (HistoryBuffer, 'mean.__globals__'),
        (HistoryBuffer, ('mean',)),
        (HistoryBuffer, None),
        (HistoryBuffer.mean, '__globals__'),
        (HistoryBuffer([1.0], [1]), 'mean'),
        (Child, 'mean'),
        (os, 'system'),
        (builtins, 'eval'),
        (np, 'mean'),
        (mmgdrq, 'compat'),
    ],
)
def test_restricted_getattr_refuses_everything_else(owner, name):
    with pytest.raises(AttributeError, match='may not read'):
        restricted_getattr(owner, name)


# ------------------------------------------------------------------ versions


def test_tested_versions_are_silent():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_versions('2.11.0+cu130', (3, 11))
        check_versions('2.13.0', (3, 12))


@pytest.mark.parametrize(
    ('torch_version', 'python', 'words'),
    [
        ('2.99.1', (3, 11), 'torch 2.99 was not tested'),
        ('2.11.0', (3, 14), 'python 3.14 was not tested'),
        ('2.4.1', (3, 11), 'only checkpoints that you trust'),
    ],
)
def test_other_versions_are_named(torch_version, python, words):
    with pytest.warns(UserWarning, match=words):
        check_versions(torch_version, python)


def test_a_torch_that_folds_wrongly_is_refused():
    with pytest.raises(ImportError, match=r'torch 2\.1 was not tested.*2\.4 or newer'):
        check_versions('2.1.2+cu121', (3, 11))
