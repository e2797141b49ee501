"""docs/reliability.md is what the benchmarks have measured, and says so where something did not hold."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'benchmarks/reliability'


def load(name: str):
    """A module of the benchmarks."""
    spec = importlib.util.spec_from_file_location(f'reliability_{name}', FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def measured(monkeypatch):
    """The arguments of ``page``, as they are in the repository."""
    monkeypatch.setattr(sys, 'path', [*sys.path])
    files = [FOLDER / f'{name}.json' for name in ('results', 'versions', 'fuzz')]
    return [*(json.loads(file.read_text()) for file in files), load('run').TEST_FILES]


def test_the_page_is_generated(measured):
    assert (ROOT / 'docs/reliability.md').read_text() == load('page').page(*measured)


def test_every_file_of_tests_is_there(measured):
    assert all((ROOT / file).is_file() for file in measured[-1].values())


def test_every_test_that_the_page_names_is_there():
    named = re.findall(r'`(tests/[\w/]+\.py)(?:::(\w+))?`', (ROOT / 'docs/reliability.md').read_text(encoding='utf-8'))
    assert len(named) > 60
    for file, test in named:
        assert not test or f'\ndef {test}(' in (ROOT / file).read_text(encoding='utf-8'), f'{file}::{test}'


def test_what_did_not_hold_is_on_the_page(measured):
    results, versions, fuzz, files = measured
    results['tests']['result']['hostile']['failed'] = 3
    results['soak']['result']['slope_mb'] = 1000.0
    next(iter(fuzz.values()))['finding'] = 'Traceback'
    next(iter(versions.values()))['failures'] = 7
    results['packing'] = {**results['packing'], 'error': 'AssertionError'}
    text = load('page').page(results, versions, fuzz, files)
    for words in ('3 FAILED', '| FAILED: memory', '| FAILED |', '7 FAILED', 'FAILED: AssertionError'):
        assert words in text
