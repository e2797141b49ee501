"""The long form of tests/reliability: many faults of every kind, many inputs, a long training.

    python benchmarks/reliability/run.py                        # 50 faults a kind, 2,000 iterations; about an hour
    python benchmarks/reliability/run.py --only soak            # one part; the other results stay
    python benchmarks/reliability/run.py --only                 # only the page, from what is there
    python benchmarks/reliability/run.py --faults 2 --examples 20 --iterations 40 --out /tmp/r.json --doc ''

Writes results.json beside this file, and docs/reliability.md from it and from the files of versions.py and
fuzz_atheris.py.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import traceback
import xml.etree.ElementTree as ET
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]
VERSIONS, FUZZ = HERE / 'versions.json', HERE / 'fuzz.json'
PARTS = ('training', 'packing', 'deploying', 'tests', 'soak')
TEST_FILES = {
    'numerics': 'tests/reliability/test_numerics.py',
    'checkpoints': 'tests/reliability/test_checkpoints.py',
    'fit of tools': 'tests/reliability/test_fit_of_tools.py',
    'hostile': 'tests/reliability/test_hostile.py',
    'graphs': 'tests/reliability/test_hostile_graphs.py',
    'pickles': 'tests/openmmlab/test_checkpoint_types.py',
    'life cycles': 'tests/reliability/test_life_cycles.py',
    'stages': 'tests/integration/test_lifecycle.py',
    'ranks': 'tests/reliability/test_ranks.py',
    'distributed': 'tests/integration/test_distributed.py',
}


def training(folder: Path, args) -> dict:
    """Faults at random moments of training and saving."""
    from tests.reliability.scenarios import SIGNALS, Training

    def strike(part: Path, kind: str, seed: int, disk: Path) -> dict:
        run = Training(part, seed, disk, max_keep_ckpts=1)
        for moment in ('training', 'saving') if kind in SIGNALS else ('saving',):
            run.strike(kind, args.faults, moment, args.seconds)
        return moments(run, kind)

    return faults_of(folder, strike)


def packing(folder: Path, args) -> dict:
    """Faults at random moments of writing a deployed model over an earlier one."""
    from tests.reliability.scenarios import Packing

    def strike(part: Path, kind: str, seed: int, disk: Path) -> dict:
        run = Packing(disk, seed)
        run.strike(kind, args.faults, args.seconds)
        return moments(run, kind)

    return faults_of(folder, strike)


def deploying(folder: Path, args) -> dict:
    """Faults at random moments of the whole tools/deploy.py."""
    from tests.reliability.deploying import Deploying
    from tests.reliability.scenarios import SIGNALS

    def strike(part: Path, kind: str, seed: int, disk: Path) -> dict:
        run = Deploying(part, seed, disk)
        for moment in ('folding' if kind in SIGNALS else 'packing', 'exporting'):
            run.strike(kind, args.faults, moment, args.seconds)
        return moments(run, kind)

    return faults_of(folder, strike)


def faults_of(folder: Path, strike) -> dict:
    """Kind -> what ``strike(folder, kind, seed, disk)`` counted, or the reason why a kind was left out."""
    from tests.reliability.faults import small_file_system
    from tests.reliability.scenarios import KINDS, MOUNTED

    result = {}
    for seed, kind in enumerate(KINDS):
        part = folder / kind.replace(' ', '_')
        part.mkdir()
        try:
            mount = small_file_system(part / 'disk', 16) if kind == MOUNTED else contextlib.nullcontext(part)
            with mount as disk:
                result[kind] = strike(part, kind, seed, disk)
        except PermissionError as error:
            result[kind] = dict(left_out=str(error))
        print(kind, result[kind], flush=True)
    return result


def moments(run, kind: str) -> dict:
    """Moment -> number of faults of a kind."""
    return {moment: count for (found, moment), count in run.struck.items() if found == kind}


def tests(folder: Path, args) -> dict:
    """The tests of inputs, settings and files, with more examples where examples are drawn."""
    result = {}
    environment = {**os.environ, 'MMGDRQ_EXAMPLES': str(args.examples)}
    for name, file in TEST_FILES.items():
        report = folder / f'{Path(file).stem}.xml'
        command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--junitxml={report}', file]
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False)
        suite = ET.parse(report).getroot()[0]
        drawn = (ROOT / file).read_text(encoding='utf-8').count('\n@given')
        bad = int(suite.get('failures')) + int(suite.get('errors'))
        cases = int(suite.get('tests')) - drawn
        result[name] = dict(cases=cases, drawn=drawn * args.examples, failed=bad, skipped=int(suite.get('skipped')))
    return result


def soak(folder: Path, args) -> dict:
    """A long training."""
    from soak import soak as run

    return run(folder, args.iterations, args.soak_seconds)


def not_held(part: str, result: dict) -> bool:
    """Whether tests failed, or the long training was not steady; other parts raise."""
    from page import is_steady

    if part == 'tests':
        return any(found['failed'] for found in result.values())
    return part == 'soak' and bool(result) and not is_steady(result)


def environment() -> dict:
    """What the figures belong to."""
    import mmengine
    import torch

    names = [
        line.split(':')[1].strip()
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        if 'model name' in line
    ]
    return dict(
        cpu=f'{os.cpu_count()} CPU cores, no GPU ({names[0] if names else platform.machine()})',
        date=datetime.date.today().isoformat(),
        versions=f'Python {platform.python_version()}, torch {torch.__version__}, mmengine {mmengine.__version__}',
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='*', choices=PARTS, default=PARTS, help='without a part: write the page only')
    parser.add_argument('--faults', type=int, default=50, help='faults a kind')
    parser.add_argument('--examples', type=int, default=1000, help='drawn examples a property')
    parser.add_argument('--iterations', type=int, default=2000, help='of the long training')
    parser.add_argument('--seconds', type=float, default=1800, help='time limit of the faults of one kind')
    parser.add_argument('--soak-seconds', type=float, default=3600, help='time limit of the long training')
    parser.add_argument('--out', type=Path, default=HERE / 'results.json')
    parser.add_argument('--doc', default=str(ROOT / 'docs/reliability.md'), help='page to write; empty: none')
    args = parser.parse_args()
    results = json.loads(args.out.read_text(encoding='utf-8')) if args.out.exists() else {}
    failed = False
    for part in args.only:
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = dict(result=globals()[part](Path(folder), args))
            except Exception:
                traceback.print_exc()
                result, failed = dict(error=traceback.format_exc().splitlines()[-1]), True
        failed |= not_held(part, result.get('result', {}))
        results[part] = {**result, **environment()}
        print(part, json.dumps(results[part]), flush=True)
        args.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    if args.doc:
        from page import page

        others = [json.loads(file.read_text(encoding='utf-8')) if file.exists() else {} for file in (VERSIONS, FUZZ)]
        Path(args.doc).write_text(page(results, *others, TEST_FILES), encoding='utf-8')
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
