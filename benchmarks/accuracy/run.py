"""Accuracy of the rows: python benchmarks/accuracy/run.py resnet20_cifar10 --data FOLDER --rows headline --seeds 3

Each run (row and seed) leaves a json file under results/; runs that have one are not done again.
"""

import argparse
import importlib
import time
from pathlib import Path

from rows import select
from store import RESULTS, commit, path_of, save

TASKS = (
    'resnet20_cifar10',
    'resnet20_cifar10_long',
    'detection',
    'segmentation',
    'segmentation_long',
    'pspnet_digits',
    'resnet18_digits',
    'resnet18_digits_long',
    'resnet50_digits',
    'vgg11_digits',
    'vgg16_digits',
    'retinanet_digits',
    'retinanet_digits_long',
    'ssd_digits',
    'detection_bccd',
    'retinanet_bccd',
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('task', choices=TASKS)
    parser.add_argument('--data', type=Path, default=Path('data'), help='folder of the data set')
    parser.add_argument('--rows', default='*', help='globs over names or groups of rows, separated by commas')
    parser.add_argument('--seeds', type=int, default=1, help='number of seeds')
    parser.add_argument('--first-seed', type=int, default=0, help='the seeds count from here')
    parser.add_argument('--work', type=Path, default=Path('work_dirs/accuracy'), help='folder for intermediate files')
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--list', action='store_true', help='list the rows and which runs are done')
    args = parser.parse_args()
    version = commit()  # of the code that this process has loaded, whatever is checked out later
    rows, seeds = select(args.rows), range(args.first_seed, args.first_seed + args.seeds)
    if args.list:
        for row in rows:
            done = [s for s in seeds if path_of(args.task, row.name, s, args.results).exists()]
            print(f'{row.group:10}{row.name:24}{len(done)} of {args.seeds} done  {row.about}')
        return
    task = importlib.import_module(args.task)
    args.work.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for row in rows:
            if path_of(args.task, row.name, seed, args.results).exists():
                continue
            started = time.time()
            result = task.run(row, seed, args.data, args.work)
            result['minutes'] = round((time.time() - started) / 60, 1)
            save(args.task, row.name, seed, dict(result, commit=version), args.results)
            print(f'{row.name} seed {seed}: ' + ', '.join(f'{m} {result[m]:.2f}' for m in task.METRICS), flush=True)


if __name__ == '__main__':
    main()
