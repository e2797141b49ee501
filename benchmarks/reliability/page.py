"""docs/reliability.md from template.md and the results of run.py, versions.py and fuzz_atheris.py."""

from collections.abc import Iterator
from pathlib import Path

TEMPLATE = Path(__file__).with_name('template.md')
INTERRUPTS = '`tests/reliability/test_interrupts.py`'
FAULTS = {
    'training': 'the last checkpoint is whole and a resumed training computes the same',
    'packing': 'the earlier deployed model or the new one is there, whole',
    'deploying': '`tools/deploy.py` leaves the earlier deployed model or the new one, every byte of it',
}
MOMENTS = {
    'training': 'in training',
    'saving': 'in the middle of saving',
    'packing': 'in the middle of packing',
    'between': 'between two writes',
    'folding': 'while folding and verifying',
    'exporting': 'while exporting ONNX',
}
TESTS = {
    'numerics': 'extreme numbers, shapes and dtypes are right or one error',
    'checkpoints': 'a checkpoint that does not fit is refused, the latest whole one is resumed',
    'fit of tools': '`tools/` neither evaluate, deploy nor resume another model than the config says',
    'hostile': 'no file or setting of a stranger does harm',
    'graphs': 'graphs of a stranger are refused and read no other file',
    'pickles': 'only the objects that mmengine writes are loaded',
    'life cycles': 'train, resume, test and fold agree, with what runs add to a training',
    'stages': 'resume, EMA, stages and evaluation agree',
    'ranks': 'launchers start ranks, a resume may change their number, sharding is refused',
    'distributed': 'two ranks hold the same bits and equal one process',
}


def page(results: dict, versions: dict, fuzz: dict, files: dict[str, str]) -> str:
    """The page; parts that were not run are left out.

    Args:
        results: of run.py.
        versions: of versions.py.
        fuzz: of fuzz_atheris.py.
        files: name of a group of tests -> its file.
    """
    rows = [*_faults(results), *_tests(results, files), *_fuzz(fuzz), *_soak(results)]
    lines = [f'| {promise} | {held} | {tried} | {outcome} |' for promise, held, tried, outcome in rows]
    machines = {f'{part["cpu"]}; {part["versions"]}; {part["date"]}' for part in results.values()}
    table = '\n'.join(lines) + '\n\nMeasured on: ' + '. '.join(sorted(machines)) + '.'
    text = TEMPLATE.read_text(encoding='utf-8').replace('<!-- rows -->', table)
    return text.replace('<!-- versions -->', '\n'.join(_versions(versions)))


def _faults(results: dict) -> Iterator[tuple[str, str, str, str]]:
    for part, promise in FAULTS.items():
        if 'error' in results.get(part, {}):
            yield promise, INTERRUPTS, 'all kinds', f'FAILED: {results[part]["error"]}'
            continue
        for kind, found in results.get(part, {}).get('result', {}).items():
            if 'left_out' in found:
                yield promise, INTERRUPTS, kind, f'not tried: {found["left_out"]}'
                continue
            counts = ', '.join(f'{found[moment]} {text}' for moment, text in MOMENTS.items() if moment in found)
            yield promise, INTERRUPTS, f'{sum(found.values())} x {kind}: {counts}', 'held'


def _tests(results: dict, files: dict[str, str]) -> Iterator[tuple[str, str, str, str]]:
    for name, found in results.get('tests', {}).get('result', {}).items():
        tried = f'{found["cases"]:,} cases' + (f', {found["drawn"]:,} drawn inputs' if found['drawn'] else '')
        tried += f' ({found["skipped"]} skipped)' if found['skipped'] else ''
        yield TESTS[name], f'`{files[name]}`', tried, f'{found["failed"]} FAILED' if found['failed'] else 'held'


def _fuzz(fuzz: dict) -> Iterator[tuple[str, str, str, str]]:
    for name, found in fuzz.items():
        tried = f'{found["executions"]:,} executions of atheris in {found["seconds"]} s, {found["date"]}'
        outcome = 'FAILED' if found['finding'] else 'held'
        yield f'parsers give a result or one error: {name}', '`benchmarks/reliability/fuzz_atheris.py`', tried, outcome


def _soak(results: dict) -> Iterator[tuple[str, str, str, str]]:
    found = results.get('soak', {}).get('result')
    if found:
        outcome = ('held: ' if is_steady(found) else 'FAILED: ') + (
            f'memory {found["slope_mb"]:+.2f} ± {found["slope_error_mb"]:.2f} MB per 1,000 iterations '
            f'(of {found["memory_mb"]:,.0f} MB); {found["objects"]:+,} Python objects; {found["first_ms"]:.0f} ms of '
            f'CPU time an iteration in the first quarter, {found["last_ms"]:.0f} ms in the last; '
            f'all {"finite" if found["finite"] else "NOT finite"}'
        )
        tried = f'{found["iterations"]:,} iterations of a narrow Faster R-CNN'
        yield 'memory, thresholds and speed of a long training', '`benchmarks/reliability/soak.py`', tried, outcome


def is_steady(soak: dict) -> bool:
    """Whether a long training neither slows down nor grows (by 0.5 % in 1,000 iterations, beyond two errors)."""
    growth = soak['slope_mb'] - 2 * soak['slope_error_mb']
    return soak['finite'] and growth < 0.005 * soak['memory_mb'] and soak['last_ms'] < 1.1 * soak['first_ms']


def _versions(versions: dict) -> Iterator[str]:
    for found in versions.values():
        if 'left_out' in found:
            continue
        bad = found['failures'] + found['errors']
        passed = found['tests'] - bad - found['skipped']
        outcome = f'{passed:,} tests pass, {found["skipped"]} skipped' + (f', {bad} FAILED' if bad else '')
        engine = found.get('onnxruntime', 'none')
        yield f'| {found["python"]} | {found["torch"]} | {found["numpy"]} | {engine} | {outcome}, {found["date"]} |'
