"""What the tools say about options and checkpoints that cannot work, before they begin."""

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from mmengine.config import Config

from mmgdrq.errors import ConfigError
from mmgdrq.openmmlab.commands import checks
from mmgdrq.openmmlab.commands.checkpoints import check_start
from mmgdrq.openmmlab.commands.checks import check_amp
from mmgdrq.openmmlab.commands.options import add_common_options, load_config
from mmgdrq.openmmlab.commands.run import run_tool

ROOT = Path(__file__).resolve().parents[3]
RESHAPE = 'faster_rcnn_r18_fpn_digits_reshape'


def load(config: Path, *options: str) -> Config:
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    add_common_options(parser)
    return load_config(parser.parse_args([str(config), *options]))


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / 'small.py'
    path.write_text("custom_hooks = [dict(type='EMAHook')]\nlr = 1\n")
    return path


OPTIONS = {
    'no value': ('foo', '--cfg-options foo: expected key=value'),
    'brackets': ('lr=[1,2', '--cfg-options: Imbalanced brackets'),
    'beyond a list': ('custom_hooks.3.type=EMAHook', '--cfg-options: Index 3 exceeds'),
    'below a number': ('lr.begin=3', '--cfg-options: .*lr'),
}


@pytest.mark.parametrize('case', OPTIONS)
def test_an_option_that_does_not_fit_is_an_error(config, case):
    option, message = OPTIONS[case]
    with pytest.raises(ConfigError, match=message):
        load(config, '--cfg-options', option)


def test_options_that_fit_are_taken(config):
    cfg = load(config, '--cfg-options', 'lr=0.1', 'new.key=[1,2]', '--cfg-options', 'custom_hooks.0.type=A=B')
    assert (cfg.lr, cfg.new.key, cfg.custom_hooks[0].type) == (0.1, [1, 2], 'A=B')


def test_a_missing_start_names_the_config_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(ROOT / 'configs/gdrq/faster_rcnn_r18_fpn_digits_w2a4.py')
    with pytest.raises(ConfigError, match=rf'^load_from: work_dirs/{RESHAPE}/epoch_1.pth.* Train .*{RESHAPE}.py first'):
        check_start(cfg)
    cfg.load_from = 'work_dirs/of_no_config/epoch_1.pth'
    with pytest.raises(ConfigError, match=r'of_no_config/epoch_1.pth does not exist$'):
        check_start(cfg)


CONFIGS = sorted((ROOT / 'configs/gdrq').glob('*.py'))
OWN_START = [path for path in CONFIGS if "load_from = 'work_dirs" in path.read_text()]


@pytest.mark.parametrize('path', OWN_START, ids=lambda path: path.stem)
def test_every_shipped_start_below_work_dirs_has_its_config(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match='first, or name another checkpoint'):
        check_start(Config.fromfile(path))


def test_a_start_that_is_there_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(ROOT / 'configs/gdrq/faster_rcnn_r18_fpn_digits_w2a4.py')
    file = Path(cfg.load_from)
    file.parent.mkdir(parents=True)
    file.write_bytes(b'\x80 a pickle')
    check_start(cfg)
    cfg.load_from = None
    check_start(cfg)


def test_mixed_precision_without_a_device_is_an_error(monkeypatch):
    for kind in ('cuda', 'npu', 'mlu', 'musa'):
        monkeypatch.setattr(checks, f'is_{kind}_available', lambda: False)
    with pytest.raises(ConfigError, match=r'AmpOptimWrapper .*--amp'):
        check_amp(Config(dict(optim_wrapper=dict(type='AmpOptimWrapper'))))
    check_amp(Config(dict(optim_wrapper=dict(type='OptimWrapper'))))
    check_amp(Config(dict()))
    monkeypatch.setattr(checks, 'is_cuda_available', lambda: True)
    check_amp(Config(dict(optim_wrapper=dict(type='AmpOptimWrapper'))))


def test_of_all_warnings_only_that_of_pkg_resources_is_silent():
    def main() -> None:
        warnings.warn('pkg_resources is deprecated as an API. See ...', stacklevel=1)
        warnings.warn('something else', stacklevel=1)
        warnings.warn('pkg_resources is deprecated as an API, too', FutureWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        run_tool(main)
    assert [str(warning.message) for warning in seen] == [
        'something else',
        'pkg_resources is deprecated as an API, too',
    ]


def test_an_error_of_a_tool_is_all_that_it_prints(tmp_path):
    command = [sys.executable, ROOT / 'tools/train.py', ROOT / 'configs/gdrq/faster_rcnn_r18_fpn_digits_w2a4.py']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('error: train_dataloader.dataset: its data is expected at')
    assert len(done.stderr.splitlines()) == 1
