"""Makes the development environment; `make setup` calls it.

The work is cut into steps. A finished step leaves a stamp in the environment: a hash of what the
step read. So a second run does nothing, a run after an interruption goes on with the step that was
cut off, and a changed requirement repeats the steps that read it. This file runs before anything
is installed, on the bare Python.
"""

import argparse
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
STATE = '.mmgdrq-setup'  # a folder in the environment, for the stamps, a lock and mmcv's build log
PYTHONS = ((3, 11), (3, 12))  # what the pinned releases support; the package is less strict
GB = 10**9
# By its real path: this may run in the very environment that is about to be made anew.
BASE_PYTHON = os.path.realpath(sys.executable)

# Loads the library alone: importing mmcv takes packages that a later step installs.
LOAD_MMCV_OPS = """
import importlib.machinery, importlib.util, pathlib, torch
library = next(pathlib.Path(importlib.util.find_spec('mmcv').origin).parent.glob('_ext.*'))
loader = importlib.machinery.ExtensionFileLoader('_ext', str(library))
importlib.util.module_from_spec(importlib.util.spec_from_loader('_ext', loader))
"""
TRY_ALL = """
import torch
from mmcv.ops import RoIAlign, nms
box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
assert len(nms(box, torch.ones(1), 0.5)[1]) == 1
roi = torch.cat([torch.zeros(1, 1), box], 1)
assert RoIAlign(2)(torch.ones(1, 1, 8, 8), roi).shape == (1, 1, 2, 2)
import mmdet.apis, mmpretrain, mmseg.apis
"""


class SetupError(Exception):
    """Its message says what is wrong and what to do about it."""


def say(text):
    print(f'[setup] {text}', flush=True)


# Preflight: each check returns None, or one line that says what is missing and how to get it.


def check_python(version=sys.version_info):
    name = f'python{version[0]}.{version[1]}'
    if tuple(version[:2]) not in PYTHONS:
        return (
            f'{name} cannot run the pinned packages, 3.11 and 3.12 can: '
            'name one of these, as in `make setup PYTHON=python3.11`'
        )
    if importlib.util.find_spec('ensurepip') is None:
        return f'{name} lacks ensurepip, to make environments: {apt(name + "-venv")}'
    return None


def check_compiler():
    compiler = shlex.split(os.environ.get('CXX') or 'g++')[0]
    if shutil.which(compiler) is None:
        return f'no C++ compiler ({compiler}), which building mmcv takes: {apt("g++")}'
    return None


def check_headers(include=None):
    include = Path(include or sysconfig.get_paths()['include'])
    if not (include / 'Python.h').is_file():
        package = 'python{}.{}-dev'.format(*sys.version_info)
        return f'no Python.h in {include}, which building mmcv takes: {apt(package)}'
    return None


def check_libraries(names=('libGL.so.1', 'libglib-2.0.so.0', 'libxcb.so.1')):
    missing = []
    for name in names if sys.platform == 'linux' else ():
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    if missing:
        return f'no {", ".join(missing)}, which OpenCV loads: {apt("libgl1 libglib2.0-0 libxcb1")}'
    return None


def check_disk(needs):
    """needs: pairs of a folder, which need not exist yet, and the gigabytes to be written there."""
    disks = {}
    for folder, gigabytes in needs:
        while not folder.exists():
            folder = folder.parent
        first, total = disks.get(folder.stat().st_dev, (folder, 0))
        disks[folder.stat().st_dev] = (first, total + gigabytes)
    for folder, gigabytes in disks.values():
        free = shutil.disk_usage(folder).free / GB
        if free < gigabytes:
            return (
                f'{free:.1f} GB are free on the disk of {folder}, and about {gigabytes:.1f} GB are '
                'needed: free some, or name other folders, as in '
                '`make setup VENV=/big/venv TMPDIR=/big/tmp`'
            )
    return None


def apt(packages):
    return f'`apt-get install {packages}` on Debian'


def preflight(venv, steps):
    """Finds everything that the steps would fail for, before the long downloads."""
    names = [step.name for step in steps]
    size = sum(step.gigabytes for step in steps)
    downloads = size / 2  # pip holds them in the temporary folder until they are unpacked
    problems = [
        check_python(),
        check_disk([(venv, size), (Path(tempfile.gettempdir()), downloads)]),
    ]
    if 'mmcv' in names:
        problems += [check_compiler(), check_headers()]
    if 'packages' in names:
        problems += [check_libraries()]
    problems = [problem for problem in problems if problem]
    if problems:
        raise SetupError('\n'.join(problems))


# Running commands


def run(*command, **kwargs):
    command = [str(part) for part in command]
    status = subprocess.run(command, cwd=ROOT, check=False, **kwargs).returncode
    if status:
        shown = shlex.join(part for part in command if '\n' not in part)
        raise SetupError(f'status {status} from: {shown}')


def run_logged(*command, log, env, seconds=20):
    """Writes the output to a file, and tells now and then how many files ninja has compiled."""
    command = [str(part) for part in command]
    start = shown = time.monotonic()
    streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=ROOT, env=env, **streams)
    with log.open('w', encoding='utf-8') as file, process:
        for line in process.stdout:
            text = line.decode(errors='replace')
            file.write(text)
            count = re.match(r'\s*\[(\d+)/(\d+)\] ', text)
            now = time.monotonic()
            if count and (now - shown > seconds or count[1] == count[2]):
                shown = now
                minutes = (now - start) / 60
                say(f'  {count[1]} of {count[2]} files compiled after {minutes:.1f} minutes')
    if process.returncode:
        lines = log.read_text(encoding='utf-8').splitlines()[-30:]
        raise SetupError('\n'.join([*lines, f'the build failed; all of its output is in {log}']))


def discard_partial_installs(venv):
    """Makes pip forget packages whose installation was cut off: it would take them for complete.

    pip writes INSTALLER when all files of a package are in place; what it replaces is named ~...
    until then.
    """
    for site in venv.glob('lib/python*/site-packages'):
        partial = [info for info in site.glob('*.dist-info') if not (info / 'INSTALLER').exists()]
        for path in [*partial, *site.glob('~*')]:
            remove(path)


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


class Step(NamedTuple):
    name: str
    task: str  # for the user
    run: Callable
    gigabytes: float  # what it takes on the disk
    files: tuple = ()  # what it reads, relative to the repository
    settings: tuple = ()  # what else decides its result
    leaves: str = '.'  # what it leaves in the checkout, which a new clone at the same place does not have

    def key(self):
        digest = hashlib.sha256(repr(self.settings).encode())
        for name in self.files:
            digest.update((ROOT / name).read_bytes())
        return digest.hexdigest()


class Environment:
    """A virtual environment and the steps that make it."""

    def __init__(self, venv):
        self.venv = Path(venv).absolute()
        self.python = self.venv / 'bin' / 'python'
        self.state = self.venv / STATE

    def steps(self):
        torch, mmcv = 'requirements/torch.txt', 'requirements/mmcv.txt'
        pins = ('requirements/build.txt', 'requirements/locked.txt', torch)
        project = ('setup.py', 'pyproject.toml', 'mmgdrq/__init__.py', 'mmgdrq/kernels/kernels.c')
        python = (sys.version_info[:2], sys.base_prefix)
        cuda = ('FORCE_CUDA', os.environ.get('FORCE_CUDA', '0'))
        tools = 'OpenMMLab and the tools for tests and style'
        return (
            Step('venv', 'virtual environment', self.make_venv, 0.1, settings=python),
            Step('torch', 'PyTorch (large downloads)', self.install_torch, 5, pins),
            # of the pins it reads torch's alone: compiling it again for the others would be a waste
            Step('mmcv', 'mmcv with its operators', self.install_mmcv, 0.3, (torch, mmcv), cuda),
            Step('packages', tools, self.install_packages, 1, ('requirements.txt', mmcv, *pins)),
            Step('project', 'mmgdrq, editable', self.install_project, 0.1, project, (str(ROOT),), 'mmgdrq/.mim'),
        )

    def ci_key(self):
        """A hash of all that the steps read, but the path of the checkout, and of how they work."""
        digest = hashlib.sha256(Path(__file__).read_bytes())
        for step in self.steps():
            elsewhere = step._replace(settings=()) if step.name == 'project' else step
            digest.update(elsewhere.key().encode())
        return digest.hexdigest()[:16]

    def pip_install(self, *arguments):
        options = ('--disable-pip-version-check', '--no-input')
        return (self.python, '-m', 'pip', *options, 'install', *arguments)

    def make_venv(self):
        # What an interrupted run left goes. Our own folder stays, to tell whose environment it is.
        leftovers = [entry for entry in self.venv.iterdir() if entry != self.state]
        for path in [*self.state.glob('*.stamp'), *leftovers]:
            remove(path)
        run(BASE_PYTHON, '-m', 'venv', self.venv)

    def install_torch(self):
        # pip itself first: the one that Python brings may be too old
        run(*self.pip_install('-r', 'requirements/build.txt'))
        run(*self.pip_install('-c', 'requirements/locked.txt', '-r', 'requirements/torch.txt'))

    def install_mmcv(self):
        what = ('--force-reinstall', '--no-deps', '-r', 'requirements/mmcv.txt')
        quiet = {'stderr': subprocess.DEVNULL}
        try:
            run(*self.pip_install('--quiet', '--only-binary=mmcv', *what), **quiet)
            run(self.python, '-c', LOAD_MMCV_OPS, **quiet)
            return
        except SetupError:
            say('  no wheel fits; building it from source takes about 8 minutes on 2 cores')
        env = {'FORCE_CUDA': '0', 'MAX_JOBS': str(os.cpu_count() or 1), **os.environ}
        env['CFLAGS'] = '-g0 -O2'  # debug symbols would take most of the time and of the disk
        env['PATH'] = f'{self.python.parent}{os.pathsep}{env["PATH"]}'  # for ninja
        if env['FORCE_CUDA'] != '1':
            # mmcv would compile for a GPU that it sees, and fail where nvcc is missing
            env['CUDA_VISIBLE_DEVICES'] = ''
            say('  operators for the CPU; FORCE_CUDA=1 adds those for the GPU, which takes nvcc')
        # no cache: it does not tell which torch a wheel was built against
        source = ('--verbose', '--no-binary=mmcv', '--no-build-isolation', '--no-cache-dir')
        run_logged(*self.pip_install(*source, *what), log=self.state / 'mmcv-build.log', env=env)
        run(self.python, '-c', LOAD_MMCV_OPS)

    def install_packages(self):
        run(*self.pip_install('-r', 'requirements.txt'))
        run(self.python, '-W', 'ignore', '-c', TRY_ALL)

    def install_project(self):
        options = ('-qq', '--no-deps', '--no-build-isolation')
        run(*self.pip_install(*options, '--editable', ROOT))

    def stamp(self, step):
        return self.state / f'{step.name}.stamp'

    def pending(self):
        def done(step):
            stamp = self.stamp(step)
            return stamp.is_file() and stamp.read_text(encoding='utf-8') == step.key() and (ROOT / step.leaves).exists()

        steps = self.steps()
        if not done(steps[0]):
            return list(steps)
        return [step for step in steps if not done(step)]

    def update(self):
        pending = self.pending()
        if pending:
            self.check_ours()
            preflight(self.venv, pending)
            self.state.mkdir(parents=True, exist_ok=True)
            with self.lock():
                self.carry_out(self.pending())  # asked again, as the lock may have been waited for
        say(f'{self.venv} is up to date')

    def carry_out(self, steps):
        discard_partial_installs(self.venv)
        for number, step in enumerate(steps, 1):
            say(f'{number}/{len(steps)} {step.task}')
            self.stamp(step).unlink(missing_ok=True)
            step.run()
            self.stamp(step).write_text(step.key(), encoding='utf-8')

    def check_ours(self):
        if self.venv.exists() and not self.state.is_dir() and any(self.venv.iterdir()):
            raise SetupError(
                f'{self.venv} exists, and this set-up did not make it: remove it, '
                'or name another folder, as in `make setup VENV=/big/venv`'
            )

    @contextmanager
    def lock(self):
        with (self.state / 'lock').open('w', encoding='utf-8') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say('waiting for another set-up of this environment')
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--venv', default='.venv', help='the folder of the environment')
    parser.add_argument('--key', action='store_true', help='print a hash of all that is read')
    options = parser.parse_args(arguments)
    environment = Environment(options.venv)
    if options.key:
        print(environment.ci_key())
        return 0
    try:
        environment.update()
    except SetupError as error:
        for line in str(error).splitlines():
            say(line)
        return 1
    except KeyboardInterrupt:
        say('interrupted; the next run goes on from here')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
