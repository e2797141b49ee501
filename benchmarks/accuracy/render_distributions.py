"""The section of docs/results.md on distributions and thresholds."""

from pathlib import Path

from store import load
from tables import stamp, table


def distribution(root: Path) -> str:
    """Figure 5 and the trained network before and after Scale-Clip."""
    runs = {run['row']: run for run in load('distribution', root)}
    parts = ['## Distributions']
    if 'figure5' in runs:
        parts.append(_figure5(runs['figure5']))
    if 'network' in runs:
        parts.append(_network(runs['network']))
    if 'thresholds' in runs:
        parts.append(_thresholds(runs['thresholds']))
    if 'projection' in runs:
        parts.append(_projection(runs['projection']))
    return '\n\n'.join(parts) if runs else ''


def _figure5(run: dict) -> str:
    rows = [
        (str(r['bits']), f"`'{r['grid']}'`", r['distribution'], f'{r["loss"]:.3f}', f'{r["alpha"]:.2f}')
        for r in run['rows']
    ]
    return '\n\n'.join(
        [
            "Quantized-loss (p = 1) at its best range on 200,000 samples. The paper's figure 5 is the two's complement "
            'grid with 4 bits.',
            table(('bits', 'grid', 'distribution', 'quantized-loss', 'alpha* / mean|w|'), rows),
            '![quantized-loss over alpha](images/figure5.png)',
            f'`python benchmarks/accuracy/distribution.py`, {stamp([run])}',
        ]
    )  # fmt: skip


def _network(run: dict) -> str:
    names = {'before': 'float', 'after': 'after Scale-Clip', 'quantized': 'after quantized training'}
    rows = []
    for key, values in run['rows'].items():
        cells = ('weight_loss', 'weight_gap', 'input_loss', 'input_gap')
        rows.append((names[key], *(f'{values[c]:.3f}' for c in cells)))
    layers = next(iter(run['rows'].values()))['layers']
    head = ('checkpoint', 'weight: quantized-loss', 'weight: distance', 'input: quantized-loss', 'input: distance')
    pictures = '\n'.join(f'![weights: {names[key]}](images/weights_{key}.png)' for key in run['rows'])
    return '\n\n'.join(
        [
            f'A trained detector (`{run["config"]}`), mean over its {layers} layers with 2-bit weights and 4-bit '
            'inputs. Quantized-loss at the range of the rule; distance: Kolmogorov-Smirnov, of the magnitudes to the '
            'uniform distribution with the same mean. Lower is better.',
            table(head, rows),
            pictures,
            f'`python benchmarks/accuracy/distribution.py --config ... --before ... --after ...`, {stamp([run])}',
        ]
    )  # fmt: skip


def _thresholds(run: dict) -> str:
    about = (
        f'Thresholds of the inputs of a trained detector ({run["network"]}), layers below 8 bits: k is the threshold '
        'of the least squared error in units of a statistic of the input, mean over the layers. A rule with one k for '
        'all layers needs a small variation (standard deviation / mean). `lehmer` is the default.'
    )
    rows = [
        (
            r['statistic'],
            'signed' if r['signed'] else 'unsigned',
            str(r['layers']),
            f'{r["k"]:.2f}',
            f'{r["variation"]:.3f}',
        )
        for r in run['rows']
    ]
    return '\n\n'.join(
        [
            about,
            table(('statistic', 'grid', 'layers', 'k', 'variation of k'), rows),
            f'`python benchmarks/accuracy/thresholds.py CONFIG CHECKPOINT`, {stamp([run])}',
        ]
    )


def _projection(run: dict) -> str:
    ks, counts = (sorted({row[key] for row in run['rows']}) for key in ('k', 'repeats'))
    found = {(row['k'], row['repeats']): row for row in run['rows']}
    rows = [
        (f'{k:g}', *(f'{found[k, n]["kept"]:.3f}' for n in counts[1:]), *(f'{found[k, n]["gap"]:.3f}' for n in counts))
        for k in ks
    ]
    head = ('k', *(f'kept, {n}x' for n in counts[1:]), *(f'distance, {n}x' for n in counts))
    return '\n\n'.join(
        [
            'Scale-Clip alone, repeated without any training, on the published float weights of a ResNet-20. Kept: '
            'mean|W| as a share of what it was; distance: as above, a filter at a time. Means over the layers with '
            '2-bit weights. The distance rises where clipped weights gather on the edge of the range: a projection '
            'without training in between does not spread them.',
            table(head, rows),
            f'`python benchmarks/accuracy/projection.py --data ...`, {stamp([run])}',
        ]
    )
