"""The set-up's own logic; nothing is installed here."""

import fcntl
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup_env():
    spec = importlib.util.spec_from_file_location('setup_env', ROOT / 'dev' / 'setup_env.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def log():
    return []


@pytest.fixture
def environment(setup_env, tmp_path, monkeypatch, log):
    """Three steps that read files of a toy repository and only write down that they ran."""
    monkeypatch.setattr(setup_env, 'ROOT', tmp_path)
    monkeypatch.setattr(setup_env, 'preflight', lambda venv, steps: None)
    for name in ('a.txt', 'b.txt'):
        (tmp_path / name).write_text('1')

    class Toy(setup_env.Environment):
        def steps(self):
            files = {'venv': (), 'a': ('a.txt',), 'b': ('a.txt', 'b.txt')}
            return [
                setup_env.Step(name, name, lambda name=name: log.append(name), 0, read) for name, read in files.items()
            ]

    return Toy(tmp_path / 'venv')


def test_second_run_does_nothing(environment, log):
    environment.update()
    assert log == ['venv', 'a', 'b']
    environment.update()
    assert log == ['venv', 'a', 'b']


def test_changed_file_repeats_the_steps_that_read_it(environment, log, tmp_path):
    environment.update()
    (tmp_path / 'b.txt').write_text('2')
    environment.update()
    assert log == ['venv', 'a', 'b', 'b']
    (tmp_path / 'a.txt').write_text('2')
    environment.update()
    assert log[4:] == ['a', 'b']


def test_a_new_clone_repeats_what_leaves_files_in_the_checkout(environment, log, tmp_path, monkeypatch):
    steps = environment.steps()
    (tmp_path / 'left').touch()
    monkeypatch.setattr(environment, 'steps', lambda: [*steps[:2], steps[2]._replace(leaves='left')])
    environment.update()
    environment.update()
    assert log == ['venv', 'a', 'b']
    (tmp_path / 'left').unlink()
    environment.update()
    assert log == ['venv', 'a', 'b', 'b']


def test_goes_on_with_the_step_that_was_cut_off(environment, log, monkeypatch):
    steps = environment.steps()

    def cut_off():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        broken = [steps[0], steps[1]._replace(run=cut_off), steps[2]]
        patch.setattr(environment, 'steps', lambda: broken)
        with pytest.raises(KeyboardInterrupt):
            environment.update()
    environment.update()
    assert log == ['venv', 'a', 'b']


def test_step_that_fails_on_repetition_loses_its_stamp(environment, setup_env, log, monkeypatch, tmp_path):
    environment.update()
    (tmp_path / 'b.txt').write_text('2')
    steps = environment.steps()

    def fail():
        raise setup_env.SetupError

    with monkeypatch.context() as patch:
        patch.setattr(environment, 'steps', lambda: [*steps[:2], steps[2]._replace(run=fail)])
        with pytest.raises(setup_env.SetupError):
            environment.update()
    (tmp_path / 'b.txt').write_text('1')  # the old requirement again, but half replaced
    environment.update()
    assert log == ['venv', 'a', 'b', 'b']


def test_without_the_venv_every_step_is_repeated(environment, log):
    environment.update()
    environment.stamp(environment.steps()[0]).unlink()
    environment.update()
    assert log == ['venv', 'a', 'b'] * 2


def test_foreign_folder_is_left_alone(environment, setup_env, log):
    environment.venv.mkdir()
    (environment.venv / 'thesis.txt').touch()
    with pytest.raises(setup_env.SetupError, match='this set-up did not make it'):
        environment.update()
    assert log == []
    assert [path.name for path in environment.venv.iterdir()] == ['thesis.txt']


def test_interrupted_venv_is_emptied_and_made_anew(setup_env, tmp_path, monkeypatch):
    environment = setup_env.Environment(tmp_path / 'venv')
    environment.state.mkdir(parents=True)
    (environment.state / 'torch.stamp').touch()
    (environment.venv / 'bin').mkdir()
    (environment.venv / 'lib').mkdir()
    (environment.venv / 'lib64').symlink_to('lib')
    commands = []
    monkeypatch.setattr(setup_env, 'run', lambda *command: commands.append(command))
    environment.make_venv()
    assert list(environment.venv.iterdir()) == [environment.state]
    assert list(environment.state.iterdir()) == []
    assert commands == [(setup_env.BASE_PYTHON, '-m', 'venv', environment.venv)]


def test_partial_installs_are_discarded(setup_env, tmp_path):
    site = tmp_path / 'lib' / 'python3.11' / 'site-packages'
    for name in ('whole-1.dist-info', 'partial-1.dist-info', '~eplaced', 'whole'):
        (site / name).mkdir(parents=True)
    (site / 'whole-1.dist-info' / 'INSTALLER').write_text('pip')
    setup_env.discard_partial_installs(tmp_path)
    assert sorted(path.name for path in site.iterdir()) == ['whole', 'whole-1.dist-info']


def test_only_one_set_up_at_a_time(environment):
    environment.state.mkdir(parents=True)
    lock = environment.state / 'lock'
    with environment.lock(), lock.open('w') as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_ci_key_depends_on_the_files_and_not_on_the_place(setup_env, tmp_path, monkeypatch):
    def key():
        return setup_env.Environment('venv').ci_key()

    here = key()
    for step in setup_env.Environment('venv').steps():
        for name in step.files:
            copy = tmp_path / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(setup_env, 'ROOT', tmp_path)
    assert key() == here
    with (tmp_path / 'requirements' / 'locked.txt').open('a') as file:
        file.write('x==1\n')
    assert key() != here


def test_every_release_is_pinned_once():
    names = []
    for path in (ROOT / 'requirements.txt', *(ROOT / 'requirements').glob('*.txt')):
        for line in path.read_text().splitlines():
            if line and not line.startswith(('#', '-')):
                name, version = line.split('==')
                assert version
                names.append(name.lower())
    assert len(set(names)) == len(names)


def test_preflight_names_everything_that_is_missing(setup_env, tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    monkeypatch.setattr(setup_env, 'check_headers', lambda: 'no headers')
    for fulfilled in ('check_python', 'check_libraries'):
        monkeypatch.setattr(setup_env, fulfilled, lambda: None)
    monkeypatch.setattr(setup_env.shutil, 'disk_usage', lambda path: SimpleNamespace(free=10**8))
    steps = setup_env.Environment(tmp_path / 'venv').steps()
    with pytest.raises(setup_env.SetupError) as error:
        setup_env.preflight(tmp_path / 'not' / 'yet', steps)
    disk, compiler, headers = str(error.value).splitlines()
    assert disk.startswith('0.1 GB are free')
    assert 'no-such-compiler' in compiler
    assert headers == 'no headers'
    # the last step alone compiles nothing
    monkeypatch.setattr(setup_env.shutil, 'disk_usage', lambda path: SimpleNamespace(free=10**12))
    setup_env.preflight(tmp_path, steps[-1:])


@pytest.mark.parametrize('version', [(3, 6), (3, 9, 18), (3, 13)])
def test_python_that_the_pins_do_not_support(setup_env, version):
    message = setup_env.check_python(version)
    assert f'python{version[0]}.{version[1]} ' in message
    assert 'make setup PYTHON=' in message


def test_python_without_ensurepip(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env.importlib.util, 'find_spec', lambda name: None)
    assert 'apt-get install python3.12-venv' in setup_env.check_python((3, 12, 1))


def test_missing_headers_and_libraries(setup_env, tmp_path):
    assert 'Python.h' in setup_env.check_headers(tmp_path)
    (tmp_path / 'Python.h').touch()
    assert setup_env.check_headers(tmp_path) is None
    if sys.platform == 'linux':
        message = setup_env.check_libraries(['libc.so.6', 'libmissing.so.1'])
        assert message.startswith('no libmissing.so.1,')


def test_failed_build_shows_its_end_and_where_the_rest_is(setup_env, tmp_path, capsys):
    script = 'print("[1/2] cc a.cpp"); print("[2/2] cc b.cpp"); print("b.cpp: error"); exit(3)'
    log = tmp_path / 'build.log'
    with pytest.raises(setup_env.SetupError, match=r'b\.cpp: error\n.*build\.log'):
        setup_env.run_logged(sys.executable, '-c', script, log=log, env=None)
    assert '2 of 2 files compiled' in capsys.readouterr().out
    assert log.read_text().count('\n') == 3
