"""Tables and plots of training_step.py."""

import json
from pathlib import Path

TITLES = dict(train='training step / float', evaluate='evaluation / float')
CLOCKS = dict(wall='time on the wall', process='processor time')


TIME_COLUMNS = ('step, ms', 'step / float (quartiles)', 'evaluation / float (quartiles)')
MEMORY_COLUMNS = ('peak memory, MB', 'memory / float')


def table(report: dict) -> str:
    """The report as a Markdown table."""
    timed = 'train' in report['results']['float']
    columns = [*TIME_COLUMNS, *MEMORY_COLUMNS] if timed else MEMORY_COLUMNS
    lines = [caption(report), '', f'| | {" | ".join(columns)} |', '|---' * (len(columns) + 1) + '|']
    base = report['results']['float']['memory']
    for name, row in report['results'].items():
        cells = [name]
        if timed:
            cells += [f'{row["train"]["seconds"]["median"] * 1e3:.0f}', spread(row['train']['ratio'])]
            cells += [spread(row['evaluate']['ratio'])]
        cells += [f'{row["memory"] / 1e6:.0f}', f'{row["memory"] / base:.2f}']
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def caption(report: dict) -> str:
    """What was measured, where and when."""
    s, first = report['settings'], report['results']['float']
    kind = 'bfloat16 autocast' if s['amp'] else 'float32'
    layout = ', channels last' if s['channels_last'] else ''
    time = f' {first["train"]["rounds"]} rounds, {CLOCKS[s["clock"]]}.' if 'train' in first else ''
    return (
        f'{s["model"]}, batch {s["batch"]} at {s["size"]}x{s["size"]}, {kind}{layout}.{time} {report["machine"]}; '
        f'{report["versions"]}; kernels {report["kernels"]}; {report["date"]}.'
    )


def spread(ratio: dict[str, float]) -> str:
    """Median and quartiles as text."""
    return f'{ratio["median"]:.2f} ({ratio["low"]:.2f} to {ratio["high"]:.2f})'


def plot(report: dict, file: Path) -> None:
    """Ratios to float as bars."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    names = list(report['results'])[::-1]
    rows = [report['results'][name] for name in names]
    base = report['results']['float']['memory']
    kinds = [kind for kind in TITLES if kind in rows[0]]
    shape = dict(figsize=(1 + 3.7 * (len(kinds) + 1), 0.35 * len(names) + 1.2), sharey=True, layout='constrained')
    figure, axes = plt.subplots(1, len(kinds) + 1, **shape)
    axes = [axes] if not kinds else list(axes)
    for axis, kind in zip(axes, kinds):
        ratios = [row[kind]['ratio'] for row in rows]
        middle = [r['median'] for r in ratios]
        ends = [[m - r['low'] for m, r in zip(middle, ratios)], [r['high'] - m for m, r in zip(middle, ratios)]]
        axis.barh(names, middle, xerr=ends, color='#4477aa')
        axis.set_title(TITLES[kind])
    axes[-1].barh(names, [row['memory'] / base for row in rows], color='#cc6677')
    axes[-1].set_title('peak memory / float')
    for axis in axes:
        axis.axvline(1, color='black', linewidth=0.8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def render(page: Path, reports: list[Path]) -> None:
    """Write the tables into a page, between ``<!-- benchmark: NAME -->`` and ``<!-- end -->``."""
    text = page.read_text(encoding='utf-8')
    for report in reports:
        begin = f'<!-- benchmark: {report.stem} -->'
        if begin not in text:
            raise SystemExit(f'{page}: no line {begin!r} for {report}')
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition('<!-- end -->')
        text = f'{before}{begin}\n{table(json.loads(report.read_text(encoding="utf-8")))}\n{end}{after}'
    page.write_text(text, encoding='utf-8')
