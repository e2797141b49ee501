"""What the source distribution and the wheel hold, how they are built, and the console command."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mmgdrq import __version__
from mmgdrq.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('mmgdrq', 'mmgdrq_runtime', 'configs', 'tools', 'demo', 'dev', 'requirements')
FILES = ('pyproject.toml', 'setup.py', 'MANIFEST.in', 'Makefile', 'README.md', 'LICENSE', 'requirements.txt')
BUILD = 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])'


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> dict[str, set[str]]:
    """The names in the source distribution, and in the wheel that is built of it; torch cannot be imported then."""
    pytest.importorskip('wheel', reason='setuptools and wheel, which build packages, are not installed')
    folder = tmp_path_factory.mktemp('packaging')
    source, out = folder / 'source', folder / 'out'
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__', '*.so', '.mim'))
    for name in (*FILES, 'model-index.yml'):
        shutil.copy(ROOT / name, source / name)
    (folder / 'without').mkdir()
    (folder / 'without/torch.py').write_text("raise ImportError('torch is not needed to build')", encoding='utf-8')
    environment = {**os.environ, 'PYTHONPATH': str(folder / 'without'), 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}
    _run([sys.executable, '-c', BUILD, str(out)], source, environment)
    sdist = out / f'mmgdrq-{__version__}.tar.gz'
    pip = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', str(out)]
    _run([*pip, str(sdist)], folder, environment)
    (wheel,) = out.glob('*.whl')
    return dict(
        sdist={name.partition('/')[2] for name in tarfile.open(sdist).getnames()},
        wheel=set(zipfile.ZipFile(wheel).namelist()),
        metadata=zipfile.ZipFile(wheel).read(f'mmgdrq-{__version__}.dist-info/METADATA').decode(),
        commands=zipfile.ZipFile(wheel).read(f'mmgdrq-{__version__}.dist-info/entry_points.txt').decode(),
    )


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def sources(folder: str, ending: str = '.py') -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(f'*{ending}') if '.mim' not in path.parts}


def test_the_wheel_holds_both_packages(built):
    assert sources('mmgdrq') | sources('mmgdrq_runtime') | {'mmgdrq/py.typed'} <= built['wheel']


def test_the_wheel_holds_configs_and_tools_for_mim(built):
    shipped = {f'mmgdrq/.mim/{name}' for name in sources('configs') | sources('tools') | sources('tools', '.sh')}
    assert {*shipped, 'mmgdrq/.mim/model-index.yml', 'mmgdrq/.mim/configs/gdrq/metafile.yml'} <= built['wheel']


def test_the_wheel_holds_nothing_else(built):
    roots = {name.partition('/')[0] for name in built['wheel']}
    assert roots == {'mmgdrq', 'mmgdrq_runtime', f'mmgdrq-{__version__}.dist-info'}
    mim = {name.split('/')[2] for name in built['wheel'] if name.startswith('mmgdrq/.mim/')}
    assert mim == {'configs', 'tools', 'model-index.yml'}
    strange = [name for name in built['wheel'] if '__pycache__' in name or 'test_' in name or 'demo' in name]
    assert [name for name in strange if not name.startswith('mmgdrq/.mim/configs')] == []


def test_the_source_distribution_has_what_the_wheel_is_made_of(built):
    needed = {'pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml', 'mmgdrq/py.typed'}
    assert (
        needed | sources('mmgdrq') | sources('mmgdrq_runtime') | sources('tools') | sources('configs') <= built['sdist']
    )
    assert 'mmgdrq/kernels/kernels.c' in built['sdist']


def test_metadata(built):
    assert f'\nVersion: {__version__}\n' in built['metadata']
    assert 'Requires-Dist: torch' not in built['metadata'], 'an installed torch stays as it is'
    assert 'mmgdrq = mmgdrq.cli:main' in built['commands']


@pytest.mark.parametrize('arguments', [['--help'], ['-h']])
def test_the_command_lists_what_it_can_do(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)


@pytest.mark.parametrize('arguments', [[], ['trian'], ['run']])
def test_an_unknown_command(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert 'usage: mmgdrq' in capsys.readouterr().out


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_has_a_tool_and_its_help(capsys, monkeypatch, command):
    monkeypatch.setattr(sys, 'argv', ['mmgdrq'])
    with pytest.raises(SystemExit) as end:
        main([command, '--help'])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: mmgdrq {command} ')
    assert (ROOT / 'tools' / f'{command}.py').is_file()


def test_tools_are_the_commands():
    assert {path.stem for path in (ROOT / 'tools').glob('*.py')} == set(COMMANDS)


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, '-m', 'mmgdrq', '--help'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('usage: mmgdrq ')
