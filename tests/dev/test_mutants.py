"""The list of one-line changes fits the code, and the script that applies them tells what was noticed."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason='tomllib comes with Python 3.11')


@pytest.fixture
def mutants(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'dev'))
    return importlib.import_module('mutants')


def test_every_change_can_be_made(mutants):
    for mutant in mutants.read_list():
        changed = mutants.changed((ROOT / mutant.file).read_text(encoding='utf-8'), mutant)
        compile(changed, mutant.file, 'exec')
        assert all((ROOT / test).exists() for test in mutant.tests), mutant.name


def test_what_is_noticed(mutants, tmp_path):
    (tmp_path / 'part.py').write_text('def double(x):\n    return 2 * x  # twice\n')
    (tmp_path / 'test_part.py').write_text('import part\n\ndef test_double():\n    assert part.double(2) == 4\n')
    (tmp_path / 'pyproject.toml').write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')

    def noticed(old: str, new: str) -> bool:
        return mutants.is_noticed(tmp_path, mutants.Mutant('name', 'part.py', old, new, ('test_part.py',)))

    assert noticed('2 * x', '3 * x')
    assert not noticed('# twice', '# two times')
    assert not noticed('2 * x', 'x ** 2')
    assert '2 * x  # twice' in (tmp_path / 'part.py').read_text()
    with pytest.raises(RuntimeError, match='pytest ended with status'):
        mutants.is_noticed(tmp_path, mutants.Mutant('name', 'part.py', '2 * x', 'x', ('missing.py',)))


@pytest.mark.parametrize(('old', 'count'), [('y', 0), ('x', 2)])
def test_a_text_that_is_not_there_once(mutants, old, count):
    with pytest.raises(ValueError, match=f"'{old}' is {count} times in"):
        mutants.changed('x = x', mutants.Mutant('name', 'file.py', old, 'z', ()))
