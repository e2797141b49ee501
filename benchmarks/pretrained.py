"""Public networks without training: python benchmarks/pretrained.py [--networks ...] [--rows ...]

Each row calibrates a network with public weights (``data/``, see pretrained_networks.py) and evaluates it. A row that
has a file in results/pretrained/ is not run again; docs/pretrained.md is written from these files at the end.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Optional

import torch
from pretrained_networks import NETWORKS, ROOT
from torch import nn

import mmgdrq
from mmgdrq.layers import is_depthwise

RESULTS = ROOT / 'benchmarks' / 'results' / 'pretrained'
PAGE = ROOT / 'docs' / 'pretrained.md'


@dataclass(frozen=True)
class Row:
    """A way to quantize a network.

    Attributes:
        title: for the page.
        weight, activation: for :func:`mmgdrq.calibrate`; no weight: the float network.
        options: further arguments of it.
        depthwise_bits: of the weights of depthwise convolutions, where other ones.
    """

    title: str
    weight: Optional[dict] = None
    activation: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    depthwise_bits: Optional[int] = None


AFFINE = dict(grid='affine')
RECONSTRUCT = dict(reconstruct=True)
BOTH = dict(reconstruct=True, bias_correction=True)
ROWS = {
    'float': Row('float'),
    'w8a8': Row('W8A8, the defaults of `calibrate`', {}),
    'w8a8-affine': Row('W8A8, affine inputs: `grid="affine"`, percentile 99.99', {}, AFFINE),
    'w8a8-affine-99.999': Row('the same, percentile 99.999', {}, dict(AFFINE, percentile=99.999)),
    'w8a8-affine-minmax': Row('the same, min-max', {}, dict(AFFINE, range='minmax')),
    'w8a8-affine-scalar': Row('W8A8, affine inputs, one range for all channels', {}, dict(AFFINE, per_channel=False)),
    'w8a8-affine-search': Row('W8A8, affine inputs, weights `search`', dict(range='search'), AFFINE),
    'w8a8-minmax': Row('W8A8, symmetric inputs, min-max', {}, dict(range='minmax')),
    'w8a8-lehmer': Row('W8A8, symmetric inputs, `lehmer` (default of training)', {}, dict(range='lehmer')),
    'w6a6-affine': Row('W6A6, affine inputs', dict(bits=6), dict(AFFINE, bits=6)),
    'w4a8-affine': Row('W4A8, affine inputs', dict(bits=4), AFFINE),
    'w4a8-reconstruct': Row('the same, `reconstruct`', dict(bits=4), AFFINE, RECONSTRUCT),
    'w4a8-reconstruct-bias': Row('the same, `reconstruct` and `bias_correction`', dict(bits=4), AFFINE, BOTH),
    'w4a8-depthwise8': Row('the same, depthwise weights at 8 bits', dict(bits=4), AFFINE, BOTH, 8),
}
"""Key, which names the file -> row."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='*', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--rows', nargs='*', choices=ROWS, default=list(ROWS))
    parser.add_argument('--images', type=int, default=128, help='to calibrate with')
    parser.add_argument('--count', type=int, default=0, help='images to evaluate on; 0: all')
    args = parser.parse_args()
    for name in args.networks:
        for key in args.rows:
            file = RESULTS / f'{name}-{key}.json'
            if not file.exists():
                result = run(name, ROWS[key], args.images, args.count)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
                print(f'{name} {key}: {result["metric"]:.2f}', flush=True)
    PAGE.write_text(page(), encoding='utf-8')
    print(PAGE)


def run(name: str, row: Row, images: int, count: int) -> dict[str, Any]:
    """Calibrate and evaluate one network."""
    network = NETWORKS[name]
    model, start = network.build(), time.perf_counter()
    worst: list[tuple[str, float]] = []
    if row.weight is not None:
        batches = network.calibration(images)
        specs = dict(weight=row.weight, activation=row.activation)
        rules = depthwise_rules(model, row.depthwise_bits)
        report = mmgdrq.calibrate(model, batches, progress=False, rules=rules, **specs, **row.options)
        errors = {layer.name: layer.output_error or 0.0 for layer in report.layers}
        worst = sorted(errors.items(), key=lambda item: -item[1])[:3]
    seconds = time.perf_counter() - start
    return dict(
        metric=network.evaluate(model, count),
        calibration_seconds=round(seconds, 1),
        images=images,
        evaluated=count or 'all',
        worst_layers=worst,
        machine=f'{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}',
        date=str(date.today()),
        commit=subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True).stdout.strip(),
    )


def depthwise_rules(model: nn.Module, bits: Optional[int]) -> list[dict]:
    """Rules that give the depthwise convolutions of a model other bits."""
    names = [name for name, module in model.named_modules() if is_depthwise(module)]
    return [dict(pattern=name, weight=dict(bits=bits)) for name in names if bits is not None]


def page() -> str:
    """The page, from the files."""
    parts = [INTRODUCTION]
    for name, network in NETWORKS.items():
        found = {
            key: json.loads((RESULTS / f'{name}-{key}.json').read_text(encoding='utf-8'))
            for key in ROWS
            if measured(name, key)
        }
        if 'float' in found:
            parts.append(f'## {network.title}\n\n{table(found)}')
    return '\n\n'.join([*parts, CLOSING]) + '\n'


def measured(name: str, key: str) -> bool:
    """Whether a row has its file."""
    return (RESULTS / f'{name}-{key}.json').exists()


def table(found: dict[str, dict[str, Any]]) -> str:
    """Rows of a network, with their distance to float where they saw the same images."""
    lines = ['| | metric | to float | calibration, s | worst layer by itself |', '| --- | ---: | ---: | ---: | --- |']
    float_ = found['float']
    for key, result in found.items():
        same = result['evaluated'] == float_['evaluated']
        loss = f'{result["metric"] - float_["metric"]:+.2f}' if same and key != 'float' else ''
        worst = ', '.join(f'`{layer}` {error:.1%}' for layer, error in result['worst_layers'][:1])
        title = ROWS[key].title + ('' if result['evaluated'] == 'all' else f' (first {result["evaluated"]} images)')
        seconds = '' if key == 'float' else f'{result["calibration_seconds"]:.0f}'
        lines.append(f'| {title} | {result["metric"]:.2f} | {loss} | {seconds} | {worst} |')
    stamps = sorted({f'{result["machine"]}, {result["date"]}' for result in found.values()})
    images = sorted({str(result['images']) for result in found.values()})
    return '\n'.join(lines) + f'\n\nCalibrated with {" or ".join(images)} images. Measured on: {"; ".join(stamps)}.'


INTRODUCTION = """# Public networks without training

What `mmgdrq.calibrate` (and `tools/calibrate.py`) makes of two networks with public weights, on images that they were
made for. Nothing is trained. Written by `python benchmarks/pretrained.py` from the files in
`benchmarks/results/pretrained/`, which say their machine, day and commit; the seconds were measured while other
programs used the same cores. The error of a layer by itself is that of its output, with inputs in float, over the first
batch."""

CLOSING = """## What the rows say, and what they do not

- **8 bits**: YOLOX-nano, with SiLU and depthwise convolutions, keeps its AP to a few tenths with affine inputs and a
  range for each channel of a depthwise convolution; with symmetric ones, the default, hardly anything of it is left.
  EfficientNet-Lite0, with ReLU6, loses nothing with the defaults.
- **4-bit weights** without reconstruction leave nothing of YOLOX-nano; with it most comes back. With depthwise weights
  at 8 bits the loss is within the 6 AP that are aimed at, without that it is not. Lite0 has no such row yet.
- **Engines**: affine inputs run in torch, quantized and folded; graphs for engines do not have them yet, and exporting
  says so. Symmetric ones are exported.
- **Other tools on the same images, and training after the calibration** are not measured yet.
- Rows without a file in `benchmarks/results/pretrained/` are left out; the command runs them."""


if __name__ == '__main__':
    main()
