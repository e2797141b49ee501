"""docs/architecture.md names the modules in the order in which running code enters them."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs/architecture.md').read_text(encoding='utf-8')


def modules_of_page(name: str) -> list[str]:
    """First column of the table that follows a path's name."""
    text = PAGE[PAGE.index(f'(`{name}`)') :]
    text = text[: text.index('\n**', 1)]
    return re.findall(r'^\| `([\w.]+)` \|', text, re.M)


@pytest.fixture
def paths(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'dev'))
    return importlib.import_module('paths')


@pytest.mark.parametrize('name', ['convert', 'train', 'load', 'deploy'])
def test_the_page_has_the_order_of_running_code(paths, name):
    if name == 'deploy':
        pytest.importorskip('openvino', reason='openvino is not installed')
    named, entered = modules_of_page(name), paths.PATHS[name]()
    assert len(named) > 3
    assert [module for module in entered if module in named] == named


def test_the_page_names_modules_that_exist():
    for name in set(re.findall(r'`(mmgdrq\.\w+\.\w+|mmgdrq_runtime\.\w+)`', PAGE)):
        path = ROOT / name.replace('.', '/')
        assert path.with_suffix('.py').is_file() or path.is_dir(), name
