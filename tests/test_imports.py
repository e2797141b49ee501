"""The direction of the parts: quant <- layers <- policy, convert <- builder, hooks, deploy."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / 'mmgdrq'
STDLIB = {
    'collections',
    'contextlib',
    'ctypes',
    'dataclasses',
    'difflib',
    'fnmatch',
    'functools',
    'inspect',
    'itertools',
    'math',
    'pathlib',
    're',
    'threading',
    'types',
    'typing',
    'warnings',
}

ALLOWED = {
    'errors': set(),
    'files': set(),
    'quant': {'errors', 'quant'},
    'layers': {'errors', 'quant', 'layers'},
    'edges': set(),
    'survey': {'layers'},
    'training': set(),
    'rules': {'errors', 'quant', 'survey'},
    'policy': {'edges', 'quant', 'layers', 'rules', 'survey', 'training'},
    'stages': {'errors', 'layers'},
    'schedule': {'errors'},
    'optimizer_check': {'errors', 'layers'},
    'scale_clip': {'layers', 'optimizer_check'},
    'unwrap': {'errors'},
    'config_parts': set(),
    'convert': {'errors', 'layers', 'policy', 'stages'},
    'plan_log': {'policy'},
    'heads': {'registry'},
    'builder': {'errors', 'layers', 'policy', 'schedule', 'stages', 'convert', 'plan_log', 'registry', 'deploy'},
    'analysis': {'files', 'quant', 'layers', 'analysis'},
    'deploy': {'errors', 'files', 'quant', 'layers', 'policy', 'stages', 'convert', 'unwrap', 'config_parts'},
}
"""Part -> the other parts it may import."""

TORCH_ONLY = (
    'errors',
    'quant',
    'layers',
    'edges',
    'survey',
    'training',
    'rules',
    'policy',
    'convert',
    'stages',
    'schedule',
    'optimizer_check',
    'scale_clip',
)


def files_of(part: str) -> list[Path]:
    folder = ROOT / part
    found = sorted(folder.rglob('*.py')) if folder.is_dir() else [ROOT / f'{part}.py']
    assert found
    assert all(file.is_file() for file in found)
    return found


def imports_of(file: Path) -> set[str]:
    """Absolute names of the modules that a file imports, wherever in it."""
    package = ['mmgdrq', *file.relative_to(ROOT).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = '.'.join([*base, *([node.module] if node.module else [])])
            # `from .. import x` and `from . import x` may name a part itself
            names |= {f'{module}.{alias.name}' for alias in node.names} if module == 'mmgdrq' else {module}
    return names


def parts_and_packages(part: str) -> tuple[set[str], set[str]]:
    names = {name for file in files_of(part) for name in imports_of(file)}
    inside = {name.split('.')[1] for name in names if name.startswith('mmgdrq.')}
    return inside, {name.split('.')[0] for name in names} - {'mmgdrq'}


@pytest.mark.parametrize('part', ALLOWED)
def test_direction(part):
    assert parts_and_packages(part)[0] <= ALLOWED[part] | {part}


@pytest.mark.parametrize('part', TORCH_ONLY)
def test_torch_only(part):
    optional = {'triton'} if part == 'quant' else set()
    assert parts_and_packages(part)[1] <= STDLIB | {'torch'} | optional


def test_triton_is_imported_in_one_file_only():
    files = [file.name for file in files_of('quant') if 'triton' in imports_of(file)]
    assert files == ['triton_kernels.py']


@pytest.mark.parametrize('name', ['artifact', 'fold', 'layers', 'manifest', 'pairs', 'verify'])
def test_folding_needs_no_openmmlab_and_no_pickle(name):
    packages = {module.split('.')[0] for module in imports_of(ROOT / 'deploy' / f'{name}.py')} - {'mmgdrq'}
    assert not {package for package in packages if package.startswith('mm')}
    assert 'pickle' not in packages


def test_nothing_below_the_package_imports_its_root():
    for part in ALLOWED:
        for file in files_of(part):
            assert 'mmgdrq' not in imports_of(file), file


def test_the_parser_sees_what_it_should():
    assert 'mmgdrq.quant' in imports_of(ROOT / 'layers' / 'quantizer.py')
    assert 'mmgdrq.quant.specs' in imports_of(ROOT / 'quant' / 'ranges.py')
    assert 'mmgdrq.errors' in imports_of(ROOT / 'rules.py')
    assert any(name.startswith('mmengine') for name in parts_and_packages('hooks')[1])
