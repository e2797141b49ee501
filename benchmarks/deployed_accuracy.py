"""Trained models in real engines: python benchmarks/deployed_accuracy.py RUN [RUN ...]

A run is the folder of a row of benchmarks/accuracy/run.py (``config.py`` and ``last_checkpoint``), such as
``work_dirs/accuracy/fcn_r18_digits/gdrq-w2a4-s0``. Each model is folded, exported and evaluated on its test set by
tools/deploy.py: quantized, folded, and in each engine. docs/deployment.md has the table.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METRICS = ('coco/bbox_mAP', 'mIoU', 'accuracy/top1')
PERCENT = {'coco/bbox_mAP': 100}
STAGES = ('quantized', 'folded', 'openvino', 'onnxruntime')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/deployed'), help='folder of the deployed models')
    args = parser.parse_args()
    lines = ['| model | metric | ' + ' | '.join(STAGES) + ' | integer kernels | codes that differ |']
    lines.append('|---' * (len(STAGES) + 4) + '|')
    for run in args.runs:
        out = args.out / run.parent.name
        lines.append(row(run.parent.name, deploy(run, out)))
        print(lines[-1], flush=True)
    print('\n'.join(['', *lines, '', f'{os.cpu_count()} cores, {platform.processor()}, {date.today()}']))


def deploy(run: Path, out: Path) -> dict:
    """The report of tools/deploy.py; a run that has one is not deployed again."""
    report = out / 'report.json'
    if not report.exists():
        checkpoint = (run / 'last_checkpoint').read_text().strip()
        tool = [sys.executable, str(ROOT / 'tools' / 'deploy.py'), str(run / 'config.py'), checkpoint]
        options = ['--out', str(out), '--export', 'onnxruntime', 'openvino', '--evaluate', '--rounds', '0']
        subprocess.run([*tool, *options, '--work-dir', str(out.parent / 'work')], check=True, cwd=ROOT)
    return json.loads(report.read_text())


def row(name: str, report: dict) -> str:
    """One line of the table."""
    metrics = report['metrics']
    key = next(key for key in METRICS if key in metrics['quantized'])
    values = [f'{metrics[stage][key] * PERCENT.get(key, 1):.2f}' for stage in STAGES]
    engines = {graph['engine']: [] for graph in report['graphs']}
    for graph in report['graphs']:
        engines[graph['engine']].append(graph)
    kernels = '; '.join(f'{e}: {total(g, "integer")} of {total(g, "blocks")}' for e, g in engines.items())
    codes = '; '.join(f'{e}: {total(g, "different"):,} of {total(g, "codes"):,}' for e, g in engines.items())
    return f'| {name} | {key} | ' + ' | '.join(values) + f' | {kernels} | {codes} |'


def total(graphs: list[dict], key: str) -> int:
    """Sum over the graphs of an engine."""
    return sum(graph[key] for graph in graphs)


if __name__ == '__main__':
    main()
