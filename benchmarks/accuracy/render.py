"""Render docs/results.md from the json files of the runs: python benchmarks/accuracy/render.py"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from render_distributions import distribution
from rows import BITS, DISTILLED, HEADLINE, PEERS, ROWS
from store import RESULTS, load
from tables import stamp, table

OUT = Path(__file__).resolve().parents[2] / 'docs' / 'results.md'
TITLES = {
    'resnet20_cifar10': ('Classification: ResNet-20 on CIFAR-10', 'top-1'),
    'resnet20_cifar10_long': ('Classification: ResNet-20 on CIFAR-10, six times as long', 'top-1'),
    'resnet18_digits': ('Classification: ResNet-18 on crops of digits', 'top-1'),
    'resnet18_digits_long': ('Classification: ResNet-18 on crops of digits, four times as long', 'top-1'),
    'resnet50_digits': ('Classification: ResNet-50 on crops of digits', 'top-1'),
    'vgg11_digits': ('Classification: VGG-11 with BN on crops of digits', 'top-1'),
    'vgg16_digits': ('Classification: VGG-16 with BN on crops of digits', 'top-1'),
    'detection': ('Detection: Faster R-CNN (ResNet-18, FPN) on scenes of digits', 'AP'),
    'retinanet_digits': ('Detection: RetinaNet (ResNet-18, FPN) on scenes of digits', 'AP'),
    'retinanet_digits_long': ('Detection: RetinaNet on scenes of digits, three times as long', 'AP'),
    'ssd_digits': ('Detection: SSD (VGG-11 without BN) on scenes of digits', 'AP'),
    'detection_bccd': ('Detection: Faster R-CNN (ResNet-18, FPN) on BCCD', 'AP'),
    'retinanet_bccd': ('Detection: RetinaNet (ResNet-18, FPN) on BCCD', 'AP'),
    'segmentation': ('Segmentation: FCN (ResNet-18) on scenes of digits', 'mIoU'),
    'segmentation_long': ('Segmentation: FCN on scenes of digits, four times as long', 'mIoU'),
    'pspnet_digits': ('Segmentation: PSPNet (ResNet-18) on scenes of digits', 'mIoU'),
}
TARGETS = {'gdrq-w2a4': 1.0, 'gdrq-w4a4': 0.3}
GROUPS = {
    HEADLINE: 'Main rows',
    DISTILLED: 'With distillation',
    BITS: 'Other bit-widths',
    PEERS: 'Other methods and libraries',
    'ablation': 'Ablation',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--out', type=Path, default=OUT)
    args = parser.parse_args()
    parts = [INTRODUCTION, summary(args.results), DISCUSSION, against_defaults(args.results)]
    parts.append(distribution(args.results))
    measured = [task for task in TITLES if list(load(task, args.results))]
    parts += [section(task, *TITLES[task], args.results) for task in measured]
    parts.append(unmeasured([task for task in TITLES if task not in measured]))
    args.out.write_text('\n\n'.join(part for part in parts if part) + '\n', encoding='utf-8')
    print(args.out)


INTRODUCTION = """# Measured accuracy

Everything here is rendered by `python benchmarks/accuracy/render.py` from the runs in
`benchmarks/accuracy/results/`; each run says its commit, day and machine. The budgets are those of a CPU: minutes a
row, all rows of a seed from the same float weights, with the same schedule. They compare rules; they are not the
accuracy that a full training reaches. The image layer and the prediction layers have 8 bits in every row."""


DISCUSSION = """What the rows say, as far as their seeds go:

- **Where W2A4 reaches its aim**: the detectors (RetinaNet on digits with learned input ranges) and the classifiers on
  digits. Where not, most of the loss is that of 2-bit weights. FCN has 16 to 128 channels, so that few products
  average an error out; ResNet-50 and VGG-11, with more of them, lose least. Four times the epochs do not help FCN,
  whose float model goes on learning as fast. PSPNet, with twice the channels and from a float model that hardly gains
  any more, loses less; with learned ranges a filter and without Scale-Clip it is about at its aims, at both widths.
- **ResNet-20 on CIFAR-10** is open: rows of earlier versions came from JPEG copies of the images and are withdrawn;
  those on the images themselves, from the published weights, have only begun.
- **The threshold of the inputs** decides next: the paper's mean with too small a k loses most of all rules, and the
  Lehmer rule needs no tuning. Learned input ranges (`range='learned'`, by the builder) are about as good, and better by
  more than a point in RetinaNet, whose head has no BN and is shared over levels; so the RetinaNet configs with W2A4
  have them. They are no default because they are parameters, which the hook cannot add, and cost memory
  (see [performance](performance.md)).
- **Scale-Clip** behaves as the paper says: with k = 1 training collapses, k = 4 changes little. The rows without
  it differ from the default by less than their seeds can tell.
- **The grid of 2-bit weights**: two's complement is below midrise on ResNet-18. Groups of 4 filters lie
  above single filters there, by less than the seeds can tell.
- **Against LSQ** at W2A4 the defaults are ahead on most tasks and over all of them (next section); they are level with
  it on FCN, and behind on PSPNet and SSD.
- **Learned ranges without Scale-Clip**, a filter each, are above the defaults at 2 bits as well, by not much more than
  chance over the tasks that have them. They need the builder, and are the first thing to try where the defaults
  lose too much.
- **Four bits**: learned ranges without Scale-Clip gain most where W4A4 misses its aim, on PSPNet, but
  over all tasks neither they nor searched ranges nor larger k are above the defaults by much more than chance. So the
  defaults are the same rules at all bits.
- **The learning rate** matters as well. That of FCN and RetinaNet was chosen by hand, for W2A4 on the first seed, from
  two to four (`lr` of the experiment); float has it too. Those trials are not kept, and other tasks had none.
- **SSD**'s float start is far from converged, so its rows show no loss from rounding, but no more than that."""

Values = dict[int, float]
"""Seed -> metric of a run."""

SUMMARY = ('float', 'gdrq-w4a4', 'gdrq-w2a4', 'learned-input-w2a4', 'lsq-w2a4', 'brevitas-w2a4', 'minmax-w2a4')
"""Rows that every task is summed up by."""


def summary(root: Path) -> str:
    """One line a task: its metric in float, and what the main rows lose."""
    lines = []
    for task, (title, metric) in TITLES.items():
        values = metrics(list(load(task, root)), metric)
        if not values['float']:
            continue
        lost = [_lost(values[name], values['float']) for name in SUMMARY[1:]]
        lines.append((title, metric, f'{mean(values["float"].values()):.2f} ({len(values["float"])})', *lost))
    if not lines:
        return ''
    about = (
        'Difference to float after the same number of further steps, in points: the mean over the seeds that both '
        'rows have, its standard error, and in parentheses the number of seeds.'
    )
    return '\n\n'.join(['## Summary', about, table(('task', 'metric', *SUMMARY), lines)])


def _lost(row: Values, reference: Values) -> str:
    changes = differences(row, reference)
    return f'{change(changes)} ({len(changes)})' if changes else ''


def against_defaults(root: Path) -> str:
    """Other rules against the defaults at the same bits, over all tasks."""
    measured = {task: metrics(list(load(task, root)), metric) for task, (_, metric) in TITLES.items()}
    lines = []
    for default in TARGETS:
        bits = default.removeprefix('gdrq-')
        for row in ROWS:
            if row.name == default or not row.name.endswith(f'-{bits}'):
                continue
            changes = {task: differences(values[row.name], values[default]) for task, values in measured.items()}
            pooled = [value for found in changes.values() for value in found]
            if len(pooled) > 1:
                tasks = sum(map(bool, changes.values()))
                lines.append((row.name, row.about, change(pooled), str(len(pooled)), str(tasks)))
    if not lines:
        return ''
    about = (
        'Rows against gdrq-w2a4 and gdrq-w4a4 (positive: better than the defaults), in points of the metric of each '
        'task, with the standard error over all runs that have a partner of the same task and seed. Rows with one '
        'such run are left out.'
    )
    return '\n\n'.join(['## Against the defaults', about, table(('row', 'what', 'difference', 'runs', 'tasks'), lines)])


def metrics(runs: list[dict], metric: str) -> dict[str, Values]:
    """The metric of every run of every row."""
    return {row.name: {run['seed']: run[metric] for run in runs if run['row'] == row.name} for row in ROWS}


def differences(row: Values, reference: Values) -> list[float]:
    """Of two rows, seed by seed: both have seen the same images in the same order."""
    return [value - reference[seed] for seed, value in row.items() if seed in reference]


def change(changes: list[float]) -> str:
    """Mean of differences, with its standard error where there is more than one."""
    error = f' ± {stdev(changes) / len(changes) ** 0.5:.2f}' if len(changes) > 1 else ''
    return f'{mean(changes):+.2f}{error}'


def section(task: str, title: str, metric: str, root: Path) -> str:
    """One task: a table for every group of rows, and which targets are reached."""
    runs = list(load(task, root))
    budgets = sorted({run['budget'] for run in runs})
    if len(budgets) > 1:
        raise ValueError(f'{root / task}: runs of different budgets do not compare: {"; ".join(budgets)}')
    values = metrics(runs, metric)
    parts = [f'## {title}', f'{runs[0]["budget"]}. {metric} in percent.']
    for group, name in GROUPS.items():
        rows = [_row(row, values[row.name], values['float']) for row in ROWS if row.group == group and values[row.name]]
        if rows:
            parts += [f'**{name}**', table(('row', metric, 'to float', 'seeds', 'what'), rows)]
    parts += [
        verdict(values),
        still_open(values, task),
        f'`python benchmarks/accuracy/run.py {task}`, {stamp(runs)}',
    ]
    return '\n\n'.join(part for part in parts if part)


def verdict(values: dict[str, Values]) -> str:
    """Whether the rows reach their targets and stay ahead of the other methods."""
    lines = []
    for name, limit in TARGETS.items():
        if changes := differences(values[name], values['float']):
            lost = -mean(changes)
            state = 'reached' if lost < limit else '**not reached**'
            how = f'loses {lost:.2f} points to' if lost >= 0 else f'is {-lost:.2f} points above'
            lines.append(f'- {name} {how} float at this budget; aim: a loss of less than {limit:g}: {state}.')
    for name in ('lsq-w2a4', 'minmax-w2a4', 'brevitas-w2a4'):
        if changes := differences(values['gdrq-w2a4'], values[name]):
            where = 'above' if mean(changes) >= 0 else '**below**'
            lines.append(f'- gdrq-w2a4 is {abs(mean(changes)):.2f} points {where} {name}.')
    return '\n'.join(lines)


def unmeasured(tasks: list[str]) -> str:
    """Tasks without a run."""
    if not tasks:
        return ''
    names = ', '.join(f'`{task}` ({TITLES[task][0]})' for task in tasks)
    return f'## Not measured\n\n`python benchmarks/accuracy/run.py TASK` has these tasks too: {names}.'


SEEDS = 3
"""Seeds of a main row without which a difference is not taken for established."""


def still_open(values: dict[str, list[float]], task: str) -> str:
    """Rows without a run, and main rows with too few seeds to tell a difference from chance."""
    possible = [row for row in ROWS if row.library != 'brevitas' or task == 'resnet20_cifar10']
    missing = [row.name for row in possible if not values[row.name] and row.group != 'ablation']
    ablation = [row for row in possible if not values[row.name] and row.group == 'ablation']
    few = [row.name for row in ROWS if row.group == HEADLINE and 0 < len(values[row.name]) < SEEDS]
    lines = []
    if few:
        lines.append(f'Fewer than {SEEDS} seeds, so the differences above may be chance: {", ".join(few)}.')
    if ablation:
        missing.append(f'{len(ablation)} rows of the ablation')
    if missing:
        lines.append(f'Not measured: {", ".join(missing)}.')
    return '\n\n'.join(lines)


def _row(row, values: Values, reference: Values) -> tuple[str, ...]:
    count = len(values)
    spread = f' ± {stdev(values.values()):.2f}' if count > 1 else ''
    changes = [] if values is reference else differences(values, reference)
    return row.name, f'{mean(values.values()):.2f}{spread}', change(changes) if changes else '', str(count), row.about


if __name__ == '__main__':
    main()
