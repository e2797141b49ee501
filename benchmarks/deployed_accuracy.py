"""Trained models in real engines: python benchmarks/deployed_accuracy.py RUN [RUN ...]

A run is the folder of a row of benchmarks/accuracy/run.py (``config.py`` and ``last_checkpoint``), such as
``work_dirs/accuracy/fcn_r18_digits/gdrq-w2a4-s0-2-epochs-lr-0.004``. Each model is folded, exported and evaluated on
its test set by tools/deploy.py: quantized, folded, and in each engine. docs/deployment.md has the table.

With --train CONFIG, a W2A4 model is trained for a few epochs first, from scratch or from --start, with the schedule of
the config shortened to --epochs: python benchmarks/deployed_accuracy.py --train CONFIG --epochs 6 --data FOLDER
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
METRICS = ('coco/bbox_mAP', 'mIoU', 'accuracy/top1')
PERCENT = {'coco/bbox_mAP': 100}
STAGES = ('quantized', 'folded', 'openvino', 'onnxruntime')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='*', type=Path, metavar='RUN')
    parser.add_argument('--train', nargs='*', default=[], metavar='CONFIG', help='configs of float models')
    parser.add_argument('--epochs', type=int, default=6, help='of --train')
    parser.add_argument('--start', type=Path, help='float checkpoint for --train')
    parser.add_argument('--data', type=Path, default=Path('data/digits'), help='data root for --train')
    parser.add_argument('--simulate', action='store_true', help="--train with deploy='onnxruntime'")
    parser.add_argument('--out', type=Path, default=Path('work_dirs/deployed'), help='folder of the deployed models')
    args = parser.parse_args()
    lines = ['| model | metric | ' + ' | '.join(STAGES) + ' | integer kernels | codes that differ, steps to a tie |']
    lines.append('|---' * (len(STAGES) + 4) + '|')
    trained = [train(Path(config), args) for config in args.train]
    for run in [*args.runs, *trained]:
        out = args.out / run.parent.name / run.name
        lines.append(row(f'{run.parent.name}, {run.name}', deploy(run, out)))
        print(lines[-1], flush=True)
    print('\n'.join(['', *lines, '', f'{os.cpu_count()} cores, {platform.processor()}, {date.today()}']))


def train(config: Path, args: argparse.Namespace) -> Path:
    """The folder of a run of tools/train.py; one that has ended is not done again."""
    run = args.out / 'runs' / config.stem / ('simulated' if args.simulate else 'w2a4')
    if (run / 'last_checkpoint').exists():
        return run
    cfg = Config.fromfile(config)
    cfg = Config.fromstring(cfg.pretty_text.replace(cfg.data_root, f'{args.data.resolve()}/'), '.py')
    cfg.custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)
    deploy = 'onnxruntime' if args.simulate else None
    cfg.custom_hooks = [dict(type='mmgdrq.GDRQHook', weight=dict(bits=2), activation=dict(bits=4), deploy=deploy)]
    cfg.load_from = str(args.start) if args.start else None
    cfg.train_cfg.update(max_epochs=args.epochs, val_interval=args.epochs)
    cfg.param_scheduler[-1].update(T_max=args.epochs, end=args.epochs)
    cfg.default_hooks.checkpoint.update(interval=args.epochs)
    run.mkdir(parents=True, exist_ok=True)
    cfg.dump(str(run / 'config.py'))
    tool = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(run / 'config.py'), '--work-dir', str(run)]
    subprocess.run(tool, check=True, cwd=ROOT)
    return run


def deploy(run: Path, out: Path) -> dict:
    """The report of tools/deploy.py; a run that has one is not deployed again."""
    report = out / 'report.json'
    if not report.exists():
        checkpoint = (run / 'last_checkpoint').read_text(encoding='utf-8').strip()
        tool = [sys.executable, str(ROOT / 'tools' / 'deploy.py'), str(run / 'config.py'), checkpoint]
        options = ['--out', str(out), '--export', 'onnxruntime', 'openvino', '--evaluate', '--rounds', '0']
        subprocess.run([*tool, *options, '--work-dir', str(out.parent / 'work')], check=True, cwd=ROOT)
    return json.loads(report.read_text(encoding='utf-8'))


def row(name: str, report: dict) -> str:
    """One line of the table."""
    metrics = report['metrics']
    key = next(key for key in METRICS if key in metrics['quantized'])
    values = [f'{metrics[stage][key] * PERCENT.get(key, 1):.2f}' for stage in STAGES]
    engines = {graph['engine']: [] for graph in report['graphs']}
    for graph in report['graphs']:
        engines[graph['engine']].append(graph)
    kernels = '; '.join(f'{e}: {total(g, "integer")} of {total(g, "blocks")}' for e, g in engines.items())
    codes = '; '.join(
        f'{e}: {total(g, "different"):,} of {total(g, "codes"):,}, {max(graph["distance"] for graph in g):.0e}'
        for e, g in engines.items()
    )
    return f'| {name} | {key} | ' + ' | '.join(values) + f' | {kernels} | {codes} |'


def total(graphs: list[dict], key: str) -> int:
    """Sum over the graphs of an engine."""
    return sum(graph[key] for graph in graphs)


if __name__ == '__main__':
    main()
