"""Latency and size of W2A4 networks in real engines: python benchmarks/deployment.py [--models ...] [--rounds 20]

Each network has random weights (the time does not depend on them) and one image. It is compared with itself in float
and with plain W8A8 in the same engine; the runs are interleaved in one process. docs/deployment.md has the table.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from datetime import date
from pathlib import Path

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from tqdm import tqdm

import mmgdrq
from mmgdrq.deploy.deployment import export
from mmgdrq.deploy.engines import find_engine
from mmgdrq.deploy.export.block_variants import FORMS
from mmgdrq.deploy.verification.latency import interleave, speedup
from mmgdrq_runtime.engines import ENGINES, open_engine

SIZES = ((224, 224), (480, 640))


def resnet(depth: int, channels: int) -> dict:
    return dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=depth),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', in_channels=channels, num_classes=1000),
    )


NETWORKS = {'resnet18': resnet(18, 512), 'resnet50': resnet(50, 2048)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='*', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--engines', nargs='*', choices=ENGINES, default=list(ENGINES))
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--threads', type=int, default=0, help='of the engine; 0 lets it choose')
    parser.add_argument('--out', type=Path, help='file (.json) for the figures')
    args = parser.parse_args()
    rows = []
    cases = [(name, size, engine) for name in args.models for size in SIZES for engine in args.engines]
    for name, size, engine in tqdm(cases):
        rows.append(measure(name, size, engine, args.rounds, args.threads))
    machine = f'{args.threads or os.cpu_count()} threads, {platform.processor() or platform.machine()}, {date.today()}'
    print(machine)
    print(f'{"network":10}{"size":>10} {"engine":12}{"ms":>8}{"to float":>10}{"to W8A8":>9}{"MB":>7}{"float":>7}')
    for row in rows:
        print(
            f'{row["network"]:10}{row["size"]:>10} {row["engine"]:12}{row["ms"]:8.1f}{row["to float"]:9.2f}x'
            f'{row["to int8"]:8.2f}x{row["mb"]:7.2f}{row["float kernels"]:7}'
        )
    if args.out:
        args.out.write_text(json.dumps(dict(machine=machine, rows=rows), indent=1) + '\n', encoding='utf-8')


def measure(name: str, size: tuple[int, int], engine: str, rounds: int, threads: int) -> dict:
    """Median milliseconds of the low-bit network, its speed relative to float and W8A8, and its size."""
    folded, x = folded_network(name, size)
    with tempfile.TemporaryDirectory() as folder:
        runs, sizes, kernels = {}, {}, {}
        for form, change in FORMS.items():
            out = Path(folder, form)
            out.mkdir()
            (exported,) = export(folded, run_on(x), out, engine, change)
            runs[form] = open_engine(engine, exported.path, threads)
            sizes[form] = exported.path.stat().st_size / 1e6
            kernels[form] = find_engine(engine).count_kernels(exported.path)
        array = x.numpy()
        times = interleave({form: lambda run=run: run(array) for form, run in runs.items()}, rounds)
    return {
        'network': name,
        'size': f'{size[0]}x{size[1]}',
        'engine': engine,
        'ms': 1000 * statistics.median(times['low-bit']),
        'to float': speedup(times, 'low-bit', 'float'),
        'to int8': speedup(times, 'low-bit', 'int8'),
        'mb': sizes['low-bit'],
        'float mb': sizes['float'],
        'integer kernels': kernels['low-bit'][0],
        'float kernels': kernels['low-bit'][1],
    }


def folded_network(name: str, size: tuple[int, int]) -> tuple[nn.Module, torch.Tensor]:
    """A folded W2A4 network with random weights, and one image."""
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    with torch.no_grad():
        model = MODELS.build(NETWORKS[name])
    mmgdrq.quantize(model, weight=dict(bits=2), activation=dict(bits=4))
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        for _ in range(2):
            model.train()(torch.cat([x, x]), mode='tensor')
    return mmgdrq.fold(model.eval(), example=run_on(x)), x


def run_on(x: torch.Tensor):
    """A function that runs a classifier on ``x``."""
    return lambda model: model.head(model.extract_feat(x))


if __name__ == '__main__':
    main()
