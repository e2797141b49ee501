"""What repeated Scale-Clip alone, without any training, does to trained float weights, by its multiplier k.

python benchmarks/accuracy/projection.py --data FOLDER

FOLDER holds the float weights of the ResNet-20. Writes results/distribution/projection-s0.json.
"""

import argparse
from pathlib import Path
from statistics import mean

from cifar import WEIGHTS, resnet20
from store import commit, save

import mmgdrq
from mmgdrq.analysis import gap_to_uniform

MULTIPLIERS = (1.0, 1.5, 2.0, 3.0, 4.0)
REPEATS = (0, 1, 10, 100, 400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('data'), help='folder of the float weights')
    args = parser.parse_args()
    version = commit()
    rows = [row for k in MULTIPLIERS for row in project(args.data / WEIGHTS, k)]
    save('distribution', 'projection', 0, dict(rows=rows, commit=version))


def project(weights: Path, k: float) -> list[dict[str, float]]:
    """Project again and again; one entry for each number of repeats.

    Returns:
        dicts with ``k``, ``repeats``, and means over the layers below 8 bits: ``kept``, mean|W| as a share of that
        of the trained weights, and ``gap``, the distance of the filters to the uniform distribution.
    """
    model = mmgdrq.quantize(resnet20(weights), weight=dict(bits=2, k=k))
    modules = dict(model.named_modules())
    layers = [modules[row.name].weight for row in mmgdrq.state(model).plan if row.weight.bits == 2]
    before = [w.abs().mean().item() for w in layers]
    clip, done, rows = mmgdrq.ScaleClip(model), 0, []
    for repeats in REPEATS:
        for _ in range(repeats - done):
            clip()
        done = repeats
        kept = mean(w.abs().mean().item() / start for w, start in zip(layers, before))
        gap = mean(gap_to_uniform(w.flatten(1)).mean().item() for w in layers)
        rows.append(dict(k=k, repeats=repeats, kept=kept, gap=gap))
    return rows


if __name__ == '__main__':
    main()
