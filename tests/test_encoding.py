"""Text files are UTF-8, whatever the locale says, and every place that opens one says so."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('mmgdrq', 'mmgdrq_runtime', 'tools', 'demo', 'dev', 'benchmarks')
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob('*.py')) if '.mim' not in path.parts]
ENGINES = ('runner', 'engine', 'Image', 'pillow')
"""Names of what has a method ``open`` for other things than text files."""


def opens_text(call: ast.Call) -> bool:
    """Whether a call opens, reads or writes a text file."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, 'id', '')
    if name in ('read_text', 'write_text', 'fdopen'):
        return True
    if name not in ('open', 'NamedTemporaryFile'):
        return False
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ''
    if owner in ('os', 'tarfile', 'zipfile') or owner.split('.')[-1] in ENGINES:
        return False
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    values = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return not any('b' in value and set(value) <= set('rwabx+') for value in values)


def without_encoding(source: str) -> list[int]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and opens_text(node)]
    return [call.lineno for call in calls if not any(keyword.arg == 'encoding' for keyword in call.keywords)]


def test_every_text_file_is_opened_with_its_encoding():
    found = {
        f'{path.relative_to(ROOT)}:{line}'
        for path in [ROOT / 'setup.py', *FILES]
        for line in without_encoding(path.read_text(encoding='utf-8'))
    }
    assert found == set()


@pytest.mark.parametrize(
    ('source', 'lines'),
    [
        ("path.read_text()\npath.write_text('a')", [1, 2]),
        ("open('a')\nopen('a', 'w')\npath.open('w')", [1, 2, 3]),
        ("open('a', 'rb')\npath.open(mode='wb')\nos.open(path, 0)\nImage.open(path)", []),
        ("open('a', encoding='utf-8')\npath.read_text(encoding='utf-8')", []),
    ],
)
def test_the_test_sees_what_it_should(source, lines):
    assert without_encoding(source) == lines


SCRIPT = """
import locale, sys, torch
from torch import nn
import mmgdrq
from mmgdrq.deploy import save_folded
from mmgdrq.deploy.folding.artifact import read_config
from mmgdrq.files import write_file

assert locale.getpreferredencoding(False).lower().replace('-', '') not in ('utf8', 'utf_8')
classes = '\\u732b', '\\u72d7'  # two animals, in Chinese
net = mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 4, 3))).train()
net(torch.rand(1, 3, 6, 6))
path = save_folded(mmgdrq.fold(net.eval()), sys.argv[1], f'classes = {classes!r}\\n')
assert read_config(path) == f'classes = {classes!r}\\n'
write_file(path.parent / 'names.txt', classes[0])
assert (path.parent / 'names.txt').read_bytes() == classes[0].encode('utf-8')
"""


def test_names_of_classes_in_a_locale_that_is_not_utf_8(tmp_path):
    environment = {**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-W', 'ignore', '-c', SCRIPT, str(tmp_path / 'out')]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 0, done.stderr[-2000:]
    assert '猫' in (tmp_path / 'out/config.py').read_text(encoding='utf-8')
