"""Write the table of the shipped configs, their plans and the model index of mim.

    python dev/list_configs.py

It builds every model without its weights and plans it; nothing is downloaded. Written are docs/configs.md, a page of
plans for every model in docs/plans, configs/gdrq/metafile.yml and model-index.yml.
"""

import argparse
import re
import warnings
from pathlib import Path

import yaml
from mmengine.config import Config

from mmgdrq.openmmlab.commands.plan import plan_of
from mmgdrq.openmmlab.config_parts import class_name
from mmgdrq.planning.plan import Plan
from mmgdrq.planning.row import PlanRow

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs/gdrq'
BITS = re.compile(r'_w(\d)a(\d)$')
PLANS = ROOT / 'docs/plans'
TASKS = dict(mmdet='Object Detection', mmseg='Semantic Segmentation', mmpretrain='Image Classification')
DATA = dict(
    CocoDataset='COCO',
    CityscapesDataset='Cityscapes',
    ADE20KDataset='ADE20K',
    PascalVOCDataset='Pascal VOC 2012',
    ImageNet='ImageNet-1k',
    CIFAR10='CIFAR-10',
)
INTRODUCTION = """# Shipped configs

Written by `python dev/list_configs.py`. Every config inherits the config of mmdet, mmsegmentation or mmpretrain that
it names, so the data, the model and the length of the training are those of OpenMMLab. None of these configs has been
trained for this table: it says what is quantized, not what accuracy comes out.

    python tools/train.py configs/gdrq/NAME.py

`load_from` starts from the float checkpoint of OpenMMLab that belongs to the inherited config. Three networks have no
checkpoint there (Faster R-CNN and FCN on VGG-16 from ImageNet weights, VGG-16-BN on CIFAR-10): train the float config
of the same name first.

The fine-tuning schedule:

| setting | value | why |
|---|---|---|
| learning rate | a tenth of the float one | as LSQ does for fine-tuning (Esser et al., ICLR 2020) |
| length | that of the inherited config | not tuned here; W8A8 usually needs far less |
| W2A4 | Scale-Clip first (one epoch, or 4,000 iterations), then rounding | the two steps of GDRQ |
| W4A4, W8A8 | rounding from the beginning | |
| BN and stem | trained: `frozen_stages=-1`, `norm_eval=False` | rounding moves the statistics of every layer |

RetinaNet with W2A4 has learned input ranges, as its head without BN asks for ([results](results.md)), and so it is
built by `mmgdrq.Quantized`. A detector of yours with such a head may gain by the same.

SSD: mmdet 3.3.0's own `SSDHead` trains, but cannot predict (open-mmlab/mmdetection issue 11780), with or without
quantization. The configs here have `bbox_head=dict(type='mmgdrq.SSDHead')`, the same head with that one line mended; an
SSD config of yours needs it as well.

What the accuracy tables of a CPU use instead of the large models is small: ResNet-18 and ResNet-50 with fewer channels,
VGG-11 and VGG-16 with BN on crops of 32 pixels, SSD on VGG-11 without BN at 64 pixels. They are the `*_digits` and
`*_bccd` configs, float baselines that become quantized ones by the two lines of the README.

A `freeze` in `stages` ends the updates of ranges and BN statistics for the last epochs (Krishnamoorthi, arXiv
1806.08342). A frozen backbone stage that a config of yours keeps has 8 bits: it is quantized, not trained.

| config | inherits | data | weight layers | bits per weight | layers at 8 bits by default | plan |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.simplefilter('ignore')
    rows, plans, index = [], {}, []
    for path in sorted(CONFIGS.glob('*.py')):
        if not BITS.search(path.stem) or 'digits' in path.stem or 'bccd' in path.stem:
            continue
        cfg = Config.fromfile(path)
        plan = plan_of(cfg, path.name)
        rows.append(row_of(path, cfg, plan))
        index.append(entry_of(path, cfg))
        plans.setdefault(BITS.sub('', path.stem), {})[path.stem] = plan
    (ROOT / 'docs/configs.md').write_text(INTRODUCTION + '\n'.join(rows) + '\n', encoding='utf-8')
    for old in PLANS.glob('*.md'):
        old.unlink()
    PLANS.mkdir(exist_ok=True)
    for name, of_model in plans.items():
        (PLANS / f'{name}.md').write_text(plans_page(name, of_model), encoding='utf-8')
    models = dict(Collections=[dict(Name='GDRQ', Paper=PAPER)], Models=index)
    (CONFIGS / 'metafile.yml').write_text(yaml.safe_dump(models, sort_keys=False, width=200), encoding='utf-8')
    (ROOT / 'model-index.yml').write_text('Import:\n  - configs/gdrq/metafile.yml\n', encoding='utf-8')


def plans_page(name: str, plans: dict[str, Plan]) -> str:
    """The plans of the configs of one model side by side, which differ in nothing but their bits."""
    variants = {config: BITS.search(config)[0][1:] for config in plans}
    lines = [('layer', 'type', 'weights', *variants.values(), 'why')]
    for same in zip(*plans.values()):
        assert len({(row.name, row.reason) for row in same}) == 1, same
        row = same[0]
        lines.append((row.name, row.module, f'{row.parameters:,}', *map(_bits, same), row.reason))
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = ['  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    sums = [f'- `{config}`: {plan.summary()}' for config, plan in plans.items()]
    head = [f'# {name}', '', 'Bits of weight / activation. Written by `python dev/list_configs.py`.']
    return '\n'.join([*head, '', *sums, '', '```', *table, '```', ''])


def _bits(row: PlanRow) -> str:
    return f'{row.weight.bits}/{row.activation.bits}' if row.weight else 'float'


PAPER = dict(
    URL='https://doi.org/10.1109/CVPRW50498.2020.00348',
    Title='Low-bit Quantization Needs Good Distribution',
)


def row_of(path: Path, cfg: Config, plan: Plan) -> str:
    """A row of the table."""
    total = sum(row.parameters for row in plan)
    bits = sum(row.parameters * row.bits for row in plan) / total
    eight = sum(bool(row.reason) for row in plan.quantized)
    name = f'[{path.stem}](../configs/gdrq/{path.name})'
    layers = f'{len(plan.quantized)} of {len(plan)}'
    page = BITS.sub('', path.stem)
    return (
        f'| {name} | {inherited(path)} | {data_of(cfg)} | {layers} | {bits:.2f} | {eight} | [plan](plans/{page}.md) |'
    )


def inherited(path: Path) -> str:
    """The config of OpenMMLab, or the float config, that a config inherits."""
    base = re.search(r"'((?:mm[a-z]+::|[.]/)[^']+)[.]py", path.read_text(encoding='utf-8'))
    return f'`{base[1]}`'


def data_of(cfg: Config) -> str:
    """Name of the training data."""
    dataset = cfg.train_dataloader.dataset
    while 'type' in dataset and class_name(dataset.type) not in DATA:
        dataset = dataset.dataset if 'dataset' in dataset else dataset.datasets[0]
    return DATA[class_name(dataset.type)]


def entry_of(path: Path, cfg: Config) -> dict:
    """An entry of the metafile; there are no weights to offer."""
    weight, activation = BITS.search(path.stem).groups()
    result = dict(Task=TASKS[cfg.default_scope], Dataset=data_of(cfg), Metrics={})
    return dict(
        Name=path.stem,
        In_Collection='GDRQ',
        Config=f'configs/gdrq/{path.name}',
        Metadata={'Weight bits': int(weight), 'Input bits': int(activation)},
        Results=[result],
    )


if __name__ == '__main__':
    main()
