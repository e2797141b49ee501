"""The results of dev/zoo_sweep.py as a markdown page."""

import os
import platform
import re
from datetime import date
from pathlib import Path

import torch
from zoo_models import ZOOS, architectures

INTRODUCTION = """One config of every architecture folder of the installed packages is built without pretrained weights,
planned and quantized to W2A4.

- **passed**: the parameters are the same objects and what was shared still is, a float checkpoint loads with only
  ranges missing, the groups that `paramwise_cfg` makes are those of the float model (`groups` in coverage.json: how
  many were compared; 0 where the config has no optimizer that can be built here), a forward and backward pass works, no
  layer with a gradient is bypassed, and the state dict makes a round trip.
- **step**: `loss` of made-up samples; or `outputs`, the sum of the raw outputs, where the made-up data do not suit the
  loss.
- **quantized** counts weight layers: every module whose weight has two or more dimensions.
- **converted**: everything but the training step was tried.
- **not built**: the float model cannot be built here, from any of the first configs of the folder.

The shares are of what was examined; folders that were not are listed below each table and count as open."""


def page(results: dict) -> str:
    """The whole page.

    Args:
        results: ``zoo/folder`` -> what was found, see docs/coverage.json.
    """
    cpu = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text(encoding='utf-8'))
    lines = [
        '# Coverage of the zoos',
        '',
        f'Written by `python dev/zoo_sweep.py --table docs/coverage.md` on {date.today()}, '
        f'{os.cpu_count()} CPU cores, no GPU ({cpu[1] if cpu else platform.machine()}), '
        f'torch {torch.__version__.split("+")[0]}.',
        '',
        INTRODUCTION,
        '',
        *summary(results),
        '',
        noted(results),
    ]
    for zoo in ZOOS:
        rows = of_zoo(zoo, results)
        if rows:
            lines += ['', f'## {zoo}', '', *_table(rows)]
            left = [f.name for f in architectures(zoo) if f'{zoo}/{f.name}' not in results]
            lines += ['', f'Not examined yet ({len(left)}): {", ".join(left)}.'] if left else []
    return '\n'.join(lines) + '\n'


def of_zoo(zoo: str, results: dict) -> dict:
    """The rows of one zoo that have a model."""
    return {k: r for k, r in results.items() if k.startswith(f'{zoo}/') and r['result'] != 'no model'}


def summary(results: dict) -> list[str]:
    """One line a zoo."""
    lines = [
        '| zoo | not examined yet | examined | built | passed | weight layers | quantized | at least 97 % quantized |',
        '|' + '---|' * 8,
    ]
    for zoo in ZOOS:
        rows = list(of_zoo(zoo, results).values())
        built = [r for r in rows if r['result'] != 'not built']
        if not built:
            continue
        passed = sum(r['result'] == 'passed' for r in built)
        layers, quantized = (sum(r.get(key, 0) for r in built) for key in ('layers', 'quantized'))
        missing = sum(f'{zoo}/{folder.name}' not in results for folder in architectures(zoo))
        high = sum(r.get('share', 0) >= 0.97 for r in built)
        lines.append(
            f'| {zoo} | {missing} | {len(rows)} | {len(built)} | {passed} ({passed / len(built):.1%}) | {layers:,} | '
            f'{quantized / max(layers, 1):.2%} | {high} of {len(built)} |'
        )
    return lines


def noted(results: dict) -> str:
    """For how many rows it is known whether parameter groups were compared."""
    built = [r for r in results.values() if r['result'] not in ('not built', 'no model')]
    known = [r['groups'] for r in built if 'groups' in r]
    return (
        f'Parameter groups: {len(known)} of {len(built)} rows note how many were compared, {known.count(0)} had none '
        'of them; the other rows were examined by an earlier version, which did not note it.'
    )


def _table(rows: dict) -> list[str]:
    head = '| folder | config | layers | quantized | result | step | left in float, or reason |'
    return [head, '|' + '---|' * 7, *(_line(key, row) for key, row in sorted(rows.items()))]


def _line(key: str, row: dict) -> str:
    floats = '; '.join(f'{number} {what}' for what, number in row.get('float', {}).items())
    why = '; '.join(part for part in (row['reason'], floats) if part).replace('|', '/')
    share = f'{row["share"]:.1%}' if 'share' in row else ''
    name, config = key.split('/')[1], row['config'].split('/')[-1].removesuffix('.py')
    return (
        f'| {name} | {config} | {row.get("layers", "")} | {share} | {row["result"]} | {row.get("step", "")} | {why} |'
    )
