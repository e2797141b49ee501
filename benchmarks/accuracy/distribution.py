"""Distributions: the paper's figure 5, and a trained network before and after Scale-Clip.

python benchmarks/accuracy/distribution.py --config CONFIG --before FLOAT.pth --after RESHAPED.pth

Writes results/distribution/*.json and the pictures of docs/results.md. Without checkpoints, only figure 5.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import torch
from store import save

from mmgdrq.quant import WeightSpec, quantized_loss, search_range

matplotlib.use('Agg')
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / 'docs' / 'images'
SAMPLES = 200_000
COLUMNS = ('weight_loss', 'weight_best', 'weight_gap', 'input_loss', 'input_best', 'input_gap')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', help='quantized config of the checkpoints')
    for name in ('before', 'after', 'quantized'):
        parser.add_argument(f'--{name}', help=f'checkpoint: {name}')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='passed on to tools/analyze.py')
    args = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    save('distribution', 'figure5', 0, dict(rows=figure5()))
    checkpoints = {name: getattr(args, name) for name in ('before', 'after', 'quantized') if getattr(args, name)}
    if checkpoints:
        rows = {name: analyze(name, args.config, path, args.cfg_options) for name, path in checkpoints.items()}
        save('distribution', 'network', 0, dict(rows=rows, config=args.config))


PANELS = ((2, 'twos_complement'), (2, 'narrow_range'), (2, 'midrise'), (4, 'twos_complement'))
"""Bits and grid of each panel of figure 5."""


def figure5() -> list[dict]:
    """Quantized-loss (p = 1) of three distributions over alpha, and its minimum."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(SAMPLES, generator=generator)
    sign = torch.where(torch.rand(SAMPLES, generator=generator) < 0.5, -1.0, 1.0)
    samples = {
        'Laplace': -uniform.clamp(min=1e-12).log() * sign,
        'Gaussian': torch.randn(SAMPLES, generator=generator),
        'uniform': uniform * sign,
    }
    figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 3.2), sharey=True)
    rows = []
    for axis, (bits, grid) in zip(axes, PANELS):
        spec = WeightSpec(bits=bits, grid=grid)
        rule = dict(levels=spec.levels, limits=spec.code_limits, p=1, offset=spec.offset)
        for name, x in samples.items():
            x = x / x.abs().mean()
            best = search_range(x[None], **rule)
            loss = quantized_loss(x[None], best, **rule)
            rows.append(dict(distribution=name, bits=bits, grid=grid, loss=loss.item(), alpha=best.item()))
            alphas = torch.linspace(0.5, 6, 56)
            losses = [quantized_loss(x, a, **rule).item() for a in alphas]
            axis.plot(alphas, losses, label=name)
            axis.plot(best, loss, 'k.')
        axis.set(title=f'{bits} bits, {grid}', xlabel='alpha / mean|w|', ylim=(0, 0.8))
    axes[0].set_ylabel('quantized-loss')
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(IMAGES / 'figure5.png', dpi=90)
    return rows


def analyze(name: str, config: str, checkpoint: str, options: list[str]) -> dict[str, float]:
    """Means over the layers below 8 bits, by tools/analyze.py; its picture goes to docs/images."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / 'tools/analyze.py'), config, checkpoint, '--out', folder]
        command += ['--work-dir', f'{folder}/work', *(['--cfg-options', *options] if options else [])]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        layers = json.loads(Path(folder, 'report.json').read_text(encoding='utf-8'))
        (IMAGES / f'weights_{name}.png').write_bytes(Path(folder, 'weights.png').read_bytes())
    layers = [layer for layer in layers if layer['weight_bits'] < 8 and layer['input_loss'] is not None]
    return dict({c: sum(layer[c] for layer in layers) / len(layers) for c in COLUMNS}, layers=len(layers))


if __name__ == '__main__':
    main()
