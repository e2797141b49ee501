"""Change one line of the package at a time, run the tests of its part, and print the changes that no test has noticed.

    python dev/mutants.py [NAME ...] [--list]

The changes are in dev/mutants.toml: the file, the text to replace, its replacement, and the tests that should fail.
They are made in a copy of the repository. A text that is no longer in its file, or is there more than once, is an
error: the list is to follow the code.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_suffix('.toml')
COPIED = ('mmgdrq', 'mmgdrq_runtime', 'tests', 'tools', 'configs', 'docs', 'dev', 'demo', 'benchmarks')
LIMIT = 600
"""Seconds for the tests of one change; a change that lets them hang is noticed as well."""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        name: of the change.
        file: relative to the repository.
        old, new: text and its replacement.
        tests: arguments of pytest.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_list(path: Path = LIST) -> list[Mutant]:
    """The changes of a file.

    Raises:
        ValueError: two of them have the same name, or one changes nothing.
    """
    entries = tomllib.loads(path.read_text(encoding='utf-8'))['mutant']
    mutants = [Mutant(**{**entry, 'tests': tuple(entry['tests'])}) for entry in entries]
    names = [mutant.name for mutant in mutants]
    for mutant in mutants:
        if names.count(mutant.name) > 1:
            raise ValueError(f'{mutant.name}: the name occurs more than once')
        if mutant.old == mutant.new:
            raise ValueError(f'{mutant.name}: changes nothing')
    return mutants


def changed(source: str, mutant: Mutant) -> str:
    """The source with the change.

    Raises:
        ValueError: its text is not in the source exactly once.
    """
    count = source.count(mutant.old)
    if count != 1:
        raise ValueError(f'{mutant.name}: {mutant.old!r} is {count} times in {mutant.file}, expected once')
    return source.replace(mutant.old, mutant.new)


def copy_of_repository(folder: Path) -> Path:
    """A copy without what git ignores, but with the compiled kernels."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    shutil.copy(ROOT / 'pyproject.toml', folder)
    return folder


def is_noticed(folder: Path, mutant: Mutant) -> bool:
    """Whether a test fails with the change; the copy is as it was then."""
    path = folder / mutant.file
    source = path.read_text(encoding='utf-8')
    path.write_text(changed(source, mutant), encoding='utf-8')
    environment = {**os.environ, 'PYTHONPATH': str(folder), 'PYTHONDONTWRITEBYTECODE': '1'}
    command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *mutant.tests]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(source, encoding='utf-8')
    if done.returncode not in (0, 1):
        raise RuntimeError(f'{mutant.name}: pytest ended with status {done.returncode}\n{done.stdout[-2000:]}')
    return done.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help='of changes; all of them by default')
    parser.add_argument('--list', action='store_true', help='print the names and check the list')
    args = parser.parse_args()
    mutants = [mutant for mutant in read_list() if not args.names or mutant.name in args.names]
    for mutant in mutants:
        changed((ROOT / mutant.file).read_text(encoding='utf-8'), mutant)
        if args.list:
            print(mutant.name)
    if args.list:
        return 0
    unnoticed = []
    with tempfile.TemporaryDirectory() as folder:
        copied = copy_of_repository(Path(folder))
        for mutant in mutants:
            started = time.time()
            noticed = is_noticed(copied, mutant)
            print(
                f'{"noticed  " if noticed else "UNNOTICED"}  {time.time() - started:5.1f} s  {mutant.name}', flush=True
            )
            unnoticed += [] if noticed else [mutant.name]
    print(f'{len(mutants) - len(unnoticed)} of {len(mutants)} changes were noticed')
    return 1 if unnoticed else 0


if __name__ == '__main__':
    sys.exit(main())
