"""Tables and plots of training_step.py."""

import json
from pathlib import Path

CLOCKS = dict(wall='time on the wall', process='processor time')


def table(report: dict) -> str:
    """The report as a Markdown table."""
    s = report['settings']
    kind = 'bfloat16 autocast' if s['amp'] else 'float32'
    layout = ', channels last' if s['channels_last'] else ''
    clock = CLOCKS[s['clock']]
    rounds = report['results']['float']['train']['rounds']
    lines = [
        f'{s["model"]}, batch {s["batch"]} at {s["size"]}x{s["size"]}, {kind}{layout}, {rounds} rounds. '
        f'Time is {clock}. {report["machine"]}; {report["versions"]}; kernels {report["kernels"]}; {report["date"]}.',
        '',
        '| | step, ms | step / float (quartiles) | evaluation / float (quartiles) | peak memory, MB | memory / float |',
        '|---|---|---|---|---|---|',
    ]
    base = report['results']['float']['memory']
    for name, row in report['results'].items():
        lines.append(
            f'| {name} | {row["train"]["seconds"]["median"] * 1e3:.0f} '
            f'| {spread(row["train"]["ratio"])} | {spread(row["evaluate"]["ratio"])} '
            f'| {row["memory"] / 1e6:.0f} | {row["memory"] / base:.2f} |'
        )
    return '\n'.join(lines)


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
    figure, axes = plt.subplots(1, 3, figsize=(12, 0.35 * len(names) + 1.2), sharey=True, layout='constrained')
    for axis, kind, title in zip(axes, ('train', 'evaluate'), ('training step / float', 'evaluation / float')):
        ratios = [row[kind]['ratio'] for row in rows]
        middle = [r['median'] for r in ratios]
        ends = [[m - r['low'] for m, r in zip(middle, ratios)], [r['high'] - m for m, r in zip(middle, ratios)]]
        axis.barh(names, middle, xerr=ends, color='#4477aa')
        axis.set_title(title)
    axes[2].barh(names, [row['memory'] / base for row in rows], color='#cc6677')
    axes[2].set_title('peak memory / float')
    for axis in axes:
        axis.axvline(1, color='black', linewidth=0.8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def render(page: Path, reports: list[Path]) -> None:
    """Write the tables into a page, between ``<!-- benchmark: NAME -->`` and ``<!-- end -->``."""
    text = page.read_text()
    for report in reports:
        begin = f'<!-- benchmark: {report.stem} -->'
        if begin not in text:
            raise SystemExit(f'{page}: no line {begin!r} for {report}')
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition('<!-- end -->')
        text = f'{before}{begin}\n{table(json.loads(report.read_text()))}\n{end}{after}'
    page.write_text(text)
