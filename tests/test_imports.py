"""The direction of imports: every file of the package, no exceptions, and no circles.

The packages stand in the order of :data:`ORDER`; each may import those before it. Parts between bars of
docs/architecture.md share a place and know nothing of each other.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ORDER = (
    {'errors'},
    {'files', 'versions'},
    {'kernels'},
    {'quant'},
    {'layers'},
    {'planning'},
    {'quantized_model'},
    {'training', 'post_training', 'analysis', 'deploy'},
    {'config'},
    {'registry'},
    {'openmmlab'},
    {'cli', 'runtime'},
    {'__main__'},
    {'__init__'},
)
"""What lies in mmgdrq/, from the bottom to the top."""

DEPLOY_ORDER = (
    {'folding'},
    {'engines'},
    {'export'},
    {'end2end'},
    {'verification'},
    {'quantized_outputs', 'plugged_engine'},
    {'simulation', 'deployment'},
    {'__init__'},
)
"""The same for mmgdrq/deploy/."""

OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmpose', 'mmyolo')
WITH_OPENMMLAB = ('registry', 'openmmlab')
"""The only parts that import packages of OpenMMLab."""

ALLOWED = {
    'errors': set(),
    'files': set(),
    'versions': {'torch'},
    'kernels': {'torch', 'triton'},
    'quant': {'torch'},
    'layers': {'torch'},
    'planning': {'torch'},
    'quantized_model': {'torch'},
    'training': {'torch'},
    'post_training': {'torch', 'tqdm'},
    'config': {'torch'},
}
"""Part -> packages outside the standard library that it may import."""


def modules_of(package: str) -> dict[str, Path]:
    """Dotted name -> file; a package itself is named ``....__init__``."""
    return {'.'.join(file.relative_to(ROOT).with_suffix('').parts): file for file in (ROOT / package).rglob('*.py')}


MODULES = {**modules_of('mmgdrq'), **modules_of('mmgdrq_runtime')}


def imports_of(name: str) -> set[str]:
    """Names of everything that a module imports, wherever in it; those of the project as in :data:`MODULES`."""
    return imports_in(MODULES[name].read_text(encoding='utf-8'), name.split('.')[:-1])


def imports_in(source: str, package: list[str]) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {_known(alias.name) or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = '.'.join([*base, *([node.module] if node.module else [])])
            # `from . import x` may name a module
            names |= {_known(f'{module}.{alias.name}') or _known(module) or module for alias in node.names}
    return names


def _known(name: str):
    return name if name in MODULES else f'{name}.__init__' if f'{name}.__init__' in MODULES else None


GRAPH = {name: imports_of(name) for name in MODULES}


def rank(part: str, order) -> int:
    found = [number for number, parts in enumerate(order) if part in parts]
    assert found, f'{part} has no place in the order'
    return found[0]


def wrong_edges(order, prefix: str) -> list[str]:
    """Imports from a part of ``prefix`` into one that does not stand before it."""
    depth, wrong = prefix.count('.') + 1, []
    for name, imported in GRAPH.items():
        for other in imported:
            if name.startswith(f'{prefix}.') and other.startswith(f'{prefix}.'):
                one, two = name.split('.')[depth], other.split('.')[depth]
                if one != two and rank(two, order) >= rank(one, order):
                    wrong.append(f'{name} -> {other}')
    return wrong


def test_every_package_imports_those_before_it_only():
    assert wrong_edges(ORDER, 'mmgdrq') == []


def test_deployment_imports_the_steps_before_it_only():
    assert wrong_edges(DEPLOY_ORDER, 'mmgdrq.deploy') == []


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that import each other (Tarjan's strongly connected components)."""
    index, low, stack, found = {}, {}, [], []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name] & set(graph):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1 or name in graph[name]:
                found.append(sorted(component))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def test_no_modules_import_each_other():
    assert circles(GRAPH) == []


def part_of(name: str) -> str:
    return name.split('.')[1]


@pytest.mark.parametrize('part', ALLOWED)
def test_a_part_imports_only_what_it_needs(part):
    names = {other.split('.')[0] for name in MODULES if part_of(name) == part for other in GRAPH[name]}
    ours = {'mmgdrq', 'mmgdrq_runtime'}
    assert names - set(sys.stdlib_module_names) - ours <= ALLOWED[part]


def test_only_the_top_imports_openmmlab():
    wrong = {
        name
        for name, imported in GRAPH.items()
        if part_of(name) not in WITH_OPENMMLAB and {other.split('.')[0] for other in imported} & set(OPENMMLAB)
    }
    assert wrong == set()


def test_the_runtime_stands_alone():
    names = {other for name in modules_of('mmgdrq_runtime') for other in GRAPH[name]}
    assert {name.split('.')[0] for name in names} & {'mmgdrq', 'torch', 'torchvision', *OPENMMLAB} == set()


def test_triton_is_imported_in_one_file_only():
    assert [name for name, imported in GRAPH.items() if 'triton' in imported] == ['mmgdrq.kernels.cuda']


def test_no_module_reads_or_writes_pickles():
    wrong = {name for name, imported in GRAPH.items() if 'pickle' in imported}
    assert wrong == {'mmgdrq.openmmlab.commands.run'}, 'it reports an UnpicklingError of torch'


def test_the_parser_sees_what_it_should():
    assert 'mmgdrq.quant.__init__' in GRAPH['mmgdrq.layers.quantizers.quantizer']
    assert 'mmgdrq.errors' in GRAPH['mmgdrq.planning.rules']
    assert 'mmengine.hooks' in GRAPH['mmgdrq.openmmlab.hooks.range_check_hook']
    assert imports_in('def f():\n    from .. import errors', ['mmgdrq', 'quant']) == {'mmgdrq.errors'}


def test_circles_are_found():
    graph = {'a': {'b'}, 'b': {'c', 'os'}, 'c': {'a'}, 'd': {'a'}, 'e': {'e'}}
    assert circles(graph) == [['a', 'b', 'c'], ['e']]
