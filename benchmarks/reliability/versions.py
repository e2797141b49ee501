"""The tests that need no mmcv, mmdet, mmseg or mmpretrain, with other versions of Python, torch and numpy.

    python benchmarks/reliability/versions.py --work /big/folder
    python benchmarks/reliability/versions.py --work /big/folder --only "Python 3.9, oldest torch" --keep

Each row of ``CASES`` gets an environment of its own below ``--work`` (about 6 GB, removed afterwards), in which a copy
of the sources is built and tested. A Python that this machine does not have is left out with that reason. Writes
versions.json beside this file; the earlier results of other rows stay.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Optional

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

CASES = {
    'Python 3.9, oldest torch': ('3.9', ('torch==2.4.*', 'numpy==1.26.*')),
    'Python 3.9, its newest torch': ('3.9', ('torch', 'numpy')),
    'Python 3.10': ('3.10', ('torch==2.6.*', 'numpy==2.*')),
    'Python 3.12, newest torch': ('3.12', ('torch', 'numpy==2.*', 'onnx', 'onnxruntime')),
    'Python 3.12, oldest torch': ('3.12', ('torch==2.4.*', 'numpy==1.26.*')),
}
"""Name -> Python, and what pip gets besides the packages that are the same everywhere. The newest ONNX Runtime for
Python 3.9 and 3.10 (1.19 and 1.23) lacks operators of the exported graphs."""

PACKAGES = ('mmengine==0.10.7', 'safetensors', 'scipy', 'matplotlib', 'pytest', 'hypothesis')
BUILD = ('setuptools<81', 'wheel')
LEFT_OUT = (
    'tests/analysis',
    'tests/benchmarks',
    'tests/integration/test_engines_on_models.py',
    'tests/layers/test_supported.py',
    'tests/reliability/test_interrupts.py',
    'tests/reliability/test_ranks.py',
    'tests/openmmlab/test_builder.py',
    'tests/integration/test_configs.py',
    'tests/demo/test_make_digits.py',
    'tests/dev/test_setup_env.py',
    'tests/integration/test_tools.py',
    'tests/benchmarks/test_training_step.py',
    'tests/integration/test_zoo.py',
)
"""Tests that import mmcv or a package of models, that are not about the package, or that are long (faults, ranks)."""

COPIED = ('mmgdrq', 'tests', 'tools', 'configs', 'docs', 'benchmarks', 'requirements')
SHOW = (
    'import json, platform, importlib.metadata as m; '
    'print(json.dumps(dict(python=platform.python_version(), **{d.metadata["Name"]: d.version '
    'for d in m.distributions() if d.metadata["Name"] in '
    '("torch", "numpy", "mmengine", "safetensors", "onnx", "onnxruntime")})))'
)


def interpreter(version: str) -> Optional[str]:
    """Path of a Python of this version, among those of pyenv (whose own commands may do nothing) or on the PATH."""
    found = sorted(Path.home().glob(f'.pyenv/versions/{version}.*/bin/python'))
    return str(found[-1]) if found else shutil.which(f'python{version}')


def copy_sources(target: Path) -> Path:
    """A copy of the repository without what was built in it."""
    ignore = shutil.ignore_patterns('__pycache__', '*.so', '.mim')
    for name in COPIED:
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for file in ('setup.py', 'pyproject.toml', 'README.md', 'Makefile', 'requirements.txt', 'model-index.yml'):
        shutil.copy(ROOT / file, target / file)
    return target


def make_environment(folder: Path, python: str, packages: tuple[str, ...]) -> str:
    """A virtual environment with torch and mmengine; the path of its Python."""
    own = str(folder / 'bin/python')
    if (folder / 'made').exists():
        return own
    call([python, '-m', 'venv', str(folder)])
    for part in (BUILD, packages, PACKAGES):
        # what is installed already stays as it is: the constraints of the row hold for the later parts too
        call([own, '-m', 'pip', 'install', '-q', '--no-cache-dir', *part, *packages])
    (folder / 'made').touch()
    return own


def test(python: str, sources: Path) -> dict:
    """Build the sources and run their tests; versions and counts."""
    environment = {**os.environ, 'PYTHONPATH': str(sources), 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    call([python, 'setup.py', '-q', 'build_ext', '--inplace'], cwd=sources)
    report = sources / 'report.xml'
    command = [python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--junitxml={report}', 'tests']
    command += [f'--ignore={path}' for path in LEFT_OUT]
    log = (sources.parent / 'pytest.txt').open('w', encoding='utf-8')
    subprocess.run(command, cwd=sources, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    suite = ET.parse(report).getroot()[0]
    counts = {name: int(suite.get(name)) for name in ('tests', 'failures', 'errors', 'skipped')}
    broken = [
        f'{case.get("classname")}.{case.get("name")}'
        for case in suite.iter('testcase')
        if case.find('failure') is not None or case.find('error') is not None
    ]
    versions = subprocess.run([python, '-c', SHOW], cwd=sources, env=environment, capture_output=True, check=True)
    kernels = any((sources / 'mmgdrq/quant').glob('_kernels.*.so'))
    return dict(json.loads(versions.stdout), **counts, kernels=kernels, broken=broken)


def call(command: list[str], **options) -> None:
    """Run a command that must succeed."""
    print('+', ' '.join(command), flush=True)
    subprocess.run(command, check=True, **options)


def run_case(name: str, work: Path, keep: bool) -> dict:
    """Make the environment of a row, test in it, and remove it."""
    version, packages = CASES[name]
    python = interpreter(version)
    date = datetime.date.today().isoformat()
    if python is None:
        return dict(left_out=f'no Python {version} on this machine', date=date)
    folder = work / name.replace(' ', '_').replace(',', '')
    shutil.rmtree(folder / 'sources', ignore_errors=True)
    (folder / 'sources').mkdir(parents=True)
    try:
        own = make_environment(folder / 'venv', python, packages)
        return dict(test(own, copy_sources(folder / 'sources')), date=date)
    except subprocess.CalledProcessError as error:
        return dict(left_out=f'{" ".join(map(str, error.cmd[1:4]))} failed', date=date)
    finally:
        if not keep:
            shutil.rmtree(folder / 'venv', ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder for the environments')
    parser.add_argument('--only', nargs='+', choices=CASES, default=tuple(CASES))
    parser.add_argument('--keep', action='store_true', help='leave the environments there, for the next run')
    parser.add_argument('--out', type=Path, default=HERE / 'versions.json')
    args = parser.parse_args()
    failed = False
    for name in args.only:
        result = run_case(name, args.work.resolve(), args.keep)
        results = json.loads(args.out.read_text(encoding='utf-8')) if args.out.exists() else {}
        results[name] = result
        args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
        print(name, json.dumps(result), flush=True)
        failed |= bool(result.get('failures') or result.get('errors'))
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
