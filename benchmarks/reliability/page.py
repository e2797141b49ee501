"""docs/reliability.md from template.md and the results of run.py."""

from pathlib import Path

TEMPLATE = Path(__file__).with_name('template.md')


def page(results: dict) -> str:
    """The page; parts that were not run are left out."""
    rows = [*_faults(results), *_tests(results), *_soak(results)]
    lines = [f'| {promise} | {held} | {tried} | {outcome} |' for promise, held, tried, outcome in rows]
    machines = {f'{part["cpu"]}; {part["versions"]}; {part["date"]}' for part in results.values()}
    table = '\n'.join(lines) + '\n\nMeasured on: ' + '. '.join(sorted(machines)) + '.'
    return TEMPLATE.read_text().replace('<!-- rows -->', table)


def _faults(results: dict):
    texts = {
        'training': ('the last checkpoint is whole and a resumed training computes the same', 'in training'),
        'folding': ('the earlier deployed model or the new one is there, whole', 'between writes'),
    }
    for part, (promise, otherwise) in texts.items():
        if 'error' in results.get(part, {}):
            yield promise, '`tests/reliability/test_interrupts.py`', 'all kinds', f'FAILED: {results[part]["error"]}'
            continue
        for kind, found in results.get(part, {}).get('result', {}).items():
            half = found['half_written']
            tried = f'{found["faults"]} x {kind}'
            if kind != 'full disk':
                tried += f' ({half} half-written, {found["faults"] - half} {otherwise})'
            yield promise, '`tests/reliability/test_interrupts.py`', tried, 'held'


def _tests(results: dict):
    texts = {
        'numerics': 'extreme numbers, shapes and dtypes are right or one error',
        'checkpoints': 'a checkpoint that does not fit is refused, the latest whole one is resumed',
        'hostile': 'no file or setting of a stranger does harm',
        'pickles': 'only the objects that mmengine writes are loaded',
        'life cycles': 'resume, EMA, stages and evaluation agree',
    }
    files = {'pickles': 'tests/test_compat.py', 'life cycles': 'tests/hooks/test_lifecycle.py'}
    for name, found in results.get('tests', {}).get('result', {}).items():
        tried = f'{found["cases"]:,} cases' + (f', {found["drawn"]:,} drawn inputs' if found['drawn'] else '')
        outcome = f'{found["failed"]} FAILED' if found['failed'] else 'held'
        yield texts[name], f'`{files.get(name, f"tests/reliability/test_{name}.py")}`', tried, outcome


def _soak(results: dict):
    found = results.get('soak', {}).get('result')
    if found:
        outcome = (
            f'memory {found["slope_mb"]:+.2f} ± {found["slope_error_mb"]:.2f} MB per 1,000 iterations '
            f'(of {found["memory_mb"]:,.0f} MB); {found["first_ms"]:.0f} ms an iteration in the first quarter, '
            f'{found["last_ms"]:.0f} ms in the last; all {"finite" if found["finite"] else "NOT finite"}'
        )
        tried = f'{found["iterations"]:,} iterations of a narrow Faster R-CNN'
        yield (
            'memory, thresholds and speed of a long training (2,000 iterations or more decide)',
            '`benchmarks/reliability/soak.py`',
            tried,
            outcome,
        )
