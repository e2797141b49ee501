"""The step benchmark runs, and its tables reach the documentation. Nothing here judges a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmgdrq.kernels import cpu as native

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'benchmarks' / 'training_step.py'
COLUMNS = 6


def run(*args):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, '-W', 'ignore', str(SCRIPT), *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp('benchmark') / 'quick'
    done = run('--quick', '--candidates', 'mmgdrq', 'mmgdrq, plain ReLU', '--device', 'cpu', '--out', out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_report(report):
    out, printed = report
    found = json.loads(out.with_suffix('.json').read_text())
    assert list(found['results']) == ['float', 'mmgdrq', 'mmgdrq, plain ReLU']
    for row in found['results'].values():
        assert row['memory'] > 0
        for kind in ('train', 'evaluate'):
            assert 0 < row[kind]['seconds']['low'] <= row[kind]['seconds']['high']
    assert found['results']['float']['train']['ratio']['median'] == 1
    assert 'CPU' in found['machine']
    assert 'torch' in found['versions']
    assert out.with_suffix('.png').read_bytes().startswith(b'\x89PNG')
    rows = [line for line in printed.splitlines() if line.startswith('| ')]
    assert all(row.count('|') == COLUMNS + 1 for row in rows)
    assert len(rows) == 4


def test_memory_alone(tmp_path):
    out = tmp_path / 'memory'
    done = run('--quick', '--memory-only', '--candidates', 'mmgdrq', '--device', 'cpu', '--out', out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.with_suffix('.json').read_text())['results']
    assert {name: set(row) for name, row in found.items()} == {'float': {'memory'}, 'mmgdrq': {'memory'}}
    assert '| | peak memory, MB | memory / float |\n|---|---|---|' in done.stdout


@pytest.mark.skipif(not native.built(), reason='kernels are not built')
def test_kernel_speed():
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, '-W', 'ignore', str(SCRIPT.with_name('kernel_speed.py'))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split('|') for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 10
    assert all(float(cell) > 0 for row in rows for cell in row[2:4])


def test_render(report, tmp_path):
    out, printed = report
    page = tmp_path / 'page.md'
    page.write_text('before\n<!-- benchmark: quick -->\nold\n<!-- end -->\nafter\n')
    assert run('--render', page, out.with_suffix('.json')).returncode == 0
    text = page.read_text()
    assert text.startswith('before\n')
    assert text.endswith('\nafter\n')
    assert printed.strip() in text
    assert 'old' not in text
    page.write_text('no marker')
    done = run('--render', page, out.with_suffix('.json'))
    assert done.returncode != 0
    assert 'benchmark: quick' in done.stderr


def test_the_tables_of_the_documentation_are_those_of_the_results(tmp_path):
    text = (ROOT / 'docs' / 'performance.md').read_text()
    results = sorted((ROOT / 'benchmarks' / 'results').glob('*.json'))
    assert results
    copy = tmp_path / 'performance.md'
    copy.write_text(text)
    assert run('--render', copy, *results).returncode == 0
    assert copy.read_text() == text
