"""Quantize one config of every architecture of the OpenMMLab zoos, take a training step, and write what happened.

For every folder of configs of the installed mmdet, mmseg and mmpretrain: build the model without pretrained weights,
plan, quantize, run forward and backward on made-up data, and check that float checkpoints load, that the state dict
makes a round trip, that the parameter groups are those of the float model, and that no quantized layer is bypassed.
Results are kept in a json file; a second run continues where the first ended.

    python tools/zoo_sweep.py [mmdet mmseg mmpretrain] [--only NAME ...] [--redo] [--out FILE] [--table FILE]
"""

import argparse
import copy
import importlib
import json
import multiprocessing
import os
import platform
import re
import time
import traceback
import warnings
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

import mmgdrq
from mmgdrq.convert import quantization_keys
from mmgdrq.layers import ActivationQuantizer, is_quantized

ZOOS = ('mmdet', 'mmseg', 'mmpretrain')
NO_MODELS = ('_base_', 'common', 'scratch', 'misc', 'legacy_1.x', 'albu_example')
SMALL = ('r18', 'tiny', 'atto', 'nano', '-t', '_t', '-s_', '-b0', 'b0', 'small', '-s', 'r50', 'base')
SIZES = (64, 128, 224, 256, 384, 512, 640, 32)
"""Image sizes that are tried for the training step, in this order."""
LIMIT = 240
"""Seconds for one architecture."""
LARGEST = 350_000_000
"""Parameters above which a model is converted, but takes no step here."""
QUANT = dict(weight=dict(bits=2), activation=dict(bits=4))
CLASSES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('zoos', nargs='*', default=ZOOS)
    parser.add_argument('--only', nargs='+', help='names of architecture folders')
    parser.add_argument('--redo', action='store_true', help='forget earlier results of what is asked for')
    parser.add_argument('--out', type=Path, default=Path('docs/coverage.json'))
    parser.add_argument('--table', type=Path, help='write the table to this markdown file')
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for zoo in args.zoos:
        importlib.import_module(f'{zoo}.models')
        for folder in architectures(zoo):
            key = f'{zoo}/{folder.name}'
            if (args.only and folder.name not in args.only) or (key in results and not args.redo):
                continue
            results[key] = isolated(zoo, representative(folder))
            row = results[key]
            print(
                key, row['result'], row.get('share', ''), row.get('step', ''), row['reason'], row['seconds'], flush=True
            )
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(results, indent=1))
            if args.table:
                args.table.write_text(table(results))
    if args.table:
        args.table.write_text(table(results))


def architectures(zoo: str) -> list[Path]:
    """Folders of a zoo that hold configs of models."""
    root = Path(importlib.import_module(zoo).__file__).parent / '.mim' / 'configs'
    return [f for f in sorted(root.iterdir()) if f.is_dir() and f.name not in NO_MODELS and any(f.rglob('*.py'))]


def representative(folder: Path) -> Path:
    """A config with a small model, and of these the one with the shortest name."""
    files = [f for f in sorted(folder.glob('*.py')) or sorted(folder.rglob('*.py')) if f.name[0] != '_']

    def cost(file: Path) -> tuple:
        rank = next((i for i, hint in enumerate(SMALL) if hint in file.stem), len(SMALL))
        return 'headless' in file.stem or 'dsdl' in file.stem, rank, len(file.stem), file.stem

    return min(files, key=cost)


def isolated(zoo: str, file: Path) -> dict:
    """Examine a config in a process of its own, with a time limit."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(target=_child, args=(zoo, file, sender))
    began = time.time()
    process.start()
    sender.close()
    row: dict = {'result': 'failed', 'reason': f'took more than {LIMIT} seconds'}
    while receiver.poll(max(LIMIT - (time.time() - began), 0)):
        try:
            row = receiver.recv()
        except EOFError:
            if row['reason'].startswith('took'):
                row['reason'] = 'the process ended (out of memory?)'
            break
    process.kill()
    process.join()
    root = file.parents[len(file.parts) - 1 - file.parts.index('configs') - 1]
    return {'config': f'{zoo}::{file.relative_to(root)}', **row, 'seconds': round(time.time() - began, 1)}


def _child(zoo: str, file: Path, sender) -> None:
    warnings.simplefilter('ignore')
    MMLogger.get_instance('sweep', log_level='ERROR')
    row: dict = {'result': 'failed', 'reason': ''}
    try:
        examine(zoo, file, row, sender)
    except Exception as error:
        row['reason'] = row['reason'] or describe(error)
        row['trace'] = traceback.format_exc()[-1500:]
    sender.send(row)
    sender.close()


def describe(error: BaseException) -> str:
    """One line about an error."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:160]}'


def examine(zoo: str, file: Path, row: dict, sender) -> None:
    """All checks of one config; ``row`` is filled on the way."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        cfg = Config.fromfile(file)
        init_default_scope(zoo)
        if 'model' not in cfg:
            row.update(result='no model', reason='the config holds no model')
            return
        model = MODELS.build(ConfigDict(without_downloads(cfg.model.to_dict())))
    except Exception as error:
        row.update(result='not built', reason=reason_not_built(error), trace=traceback.format_exc()[-1500:])
        return
    groups = parameter_groups(model, cfg)
    lacking = set(model.load_state_dict(model.state_dict(), strict=False).missing_keys)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    names = {id(m): init_names(m) for m in model.modules()}
    numbers = [id(p) for p in model.parameters()]
    mmgdrq.quantize(model, **QUANT)
    describe_plan(model, row)
    problems = []
    if [id(p) for p in model.parameters()] != numbers:
        problems.append('parameters are other objects')
    if groups != parameter_groups(model, cfg):
        problems.append('parameter groups differ')
    if any(not names[id(m)] <= init_names(m) for m in model.modules() if id(m) in names):
        problems.append('init_cfg would match other layers')
    problems += float_checkpoint_problems(model, state, lacking)
    del state
    row.update(problems=problems, step='not run', result='converted', reason='; '.join(problems))
    sender.send({**row, 'reason': row['reason'] or f'the step took more than {LIMIT} seconds'})
    if sum(p.numel() for p in model.parameters()) > LARGEST:
        row['step'] = row['reason'] = 'too large for a step here'
    else:
        take_step(zoo, model, row)
        problems += round_trip_problems(model, lacking)
    if problems:
        row.update(result='failed', reason='; '.join(problems))
    elif row['step'] != 'not run':
        row['result'] = 'passed'


def without_downloads(model: dict) -> dict:
    """The model's config without pretrained weights and without synchronized BN."""
    if isinstance(model, dict):
        made = {}
        for key, value in model.items():
            pretrained = isinstance(value, dict) and value.get('type') == 'Pretrained'
            if (key == 'pretrained' and isinstance(value, str)) or pretrained:
                value = None
            made[key] = 'BN' if value == 'SyncBN' else without_downloads(value)
        return made
    return type(model)(map(without_downloads, model)) if isinstance(model, (list, tuple)) else model


def reason_not_built(error: BaseException) -> str:
    """Whether a package or a file is missing, or something else."""
    text = f'{error} {error.__cause__ or ""}'
    missing = re.search(r"No module named '([\w.]+)'|(\w+) is not installed|pip install `?\"?(?:-r )?([^\s`\"]+)", text)
    if missing:
        return f'optional dependency absent: {missing[1] or missing[2] or missing[3]}'
    if 'urlopen' in text:
        return 'downloads a teacher network while it is built'
    return describe(error.__cause__ or error)


def init_names(module) -> set[str]:
    """The names by which ``init_cfg`` matches a layer."""
    names = {type(module).__name__, *(base.__name__ for base in type(module).__bases__)}
    return {name for name in names if not name.startswith('_')} - {'object', 'Module'}


def parameter_groups(model, cfg) -> list:
    """Settings of every parameter in the optimizer of the config; empty where it cannot be built."""
    names = {id(p): name for name, p in model.named_parameters()}
    wrapper = copy.deepcopy(cfg.get('optim_wrapper') or {})
    wrapper['type'] = 'OptimWrapper'
    try:
        built = build_optim_wrapper(model, wrapper)
    except Exception:
        return []
    keys = ('lr', 'weight_decay', 'momentum')
    return [
        ([names[id(p)] for p in group['params']], [group.get(key) for key in keys])
        for group in built.optimizer.param_groups
    ]


def describe_plan(model, row: dict) -> None:
    """Numbers of the plan, its edges, and what stays in float."""
    plan = model.gdrq_plan
    float_rows = [r for r in plan if not r.quantized]
    row['layers'], row['quantized'] = len(plan), len(plan.quantized)
    row['share'] = round(len(plan.quantized) / max(len(plan), 1), 4)
    row['float'] = dict(Counter(f'{r.module}: {r.reason}' for r in float_rows))
    row['edges'] = {r.name: r.reason for r in plan.quantized if r.reason}
    row['types'] = dict(Counter(r.module for r in plan))
    known = {id(p) for m in model.modules() if getattr(m, 'weight', None) is not None for p in m.parameters(False)}
    planned = {r.name for r in plan}
    row['other parameters'] = sorted(
        {
            re.sub(r'\.\d+\.', '.*.', name)
            for name, p in model.named_parameters()
            if p.dim() >= 2 and id(p) not in known and name.rpartition('.')[0] not in planned
        }
    )


def float_checkpoint_problems(model, state: dict, lacking: set[str]) -> list[str]:
    """Whether a float checkpoint loads with only quantization state missing."""
    found = model.load_state_dict(state, strict=False)
    ranges = {*quantization_keys(model.state_dict()), 'gdrq_stage'}
    missing = sorted(set(found.missing_keys) - ranges - lacking)
    problems = [f'a float checkpoint lacks {missing[0]}'] if missing else []
    if found.unexpected_keys:
        problems.append(f'a float checkpoint has the unexpected {found.unexpected_keys[0]}')
    model.apply(_reset)
    return problems


@torch.no_grad()
def _reset(module) -> None:
    for name, p in module.named_parameters(recurse=False):
        p.normal_(0, 0.02) if p.dim() > 1 else p.fill_(float(name.endswith(('weight', 'gamma', 'scale'))))
    if hasattr(module, 'running_var') and module.running_var is not None:
        module.running_var.fill_(1)


def round_trip_problems(model, lacking: set[str]) -> list[str]:
    """Whether the model loads what it saves."""
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    result = model.load_state_dict(saved, strict=False)
    wrong = {*result.missing_keys, *result.unexpected_keys} - lacking
    problems = [f'state dict: {k}' for k in sorted(wrong)[:1]]
    again = model.state_dict()
    problems += [f'state dict changes {k}' for k in saved if not torch.equal(saved[k], again[k])][:1]
    return problems


def take_step(zoo: str, model, row: dict) -> None:
    """Forward and backward on made-up data: with the loss if possible, else with the sum of the raw outputs."""
    errors = try_step(zoo, model, row)
    if row['step'] == 'not run':
        model.init_weights()  # some heads give impossible boxes with the weights of their layers' constructors
        errors = try_step(zoo, model, row)
    if row['step'] == 'not run':
        row['step errors'] = errors
        row['reason'] = f'no training step on made-up data ({errors[0]})'


def try_step(zoo: str, model, row: dict) -> list[str]:
    """Take the first step that works, and note it in ``row``; returns the errors of those before it."""
    model.train()
    errors = []
    for size in SIZES:
        for mode, run in attempts(zoo, model, size):
            try:
                loss = run()
                loss.backward()
            except Exception as error:
                errors.append(f'{mode} at {size}: {describe(error)}')
                row['step trace'] = traceback.format_exc()[-1200:]
                continue
            row['step'], row['size'] = mode, size
            check_step(model, row)
            if mode != 'loss':
                row['loss error'] = errors[0]
            return errors
    return errors


def check_step(model, row: dict) -> None:
    """No layer that got a gradient was bypassed."""
    idle, bypassed = [], []
    for name, layer in model.named_modules():
        if is_quantized(layer) and isinstance(layer.activation_quantizer, ActivationQuantizer):
            grad = layer.stored_weight().grad
            if not layer.activation_quantizer.is_ready():
                used = grad is not None and bool(grad.abs().sum() > 0)
                (bypassed if used else idle).append(name)
    if bypassed:
        row['problems'].append(f'{len(bypassed)} layers are bypassed, such as {bypassed[0]}')
    row['idle'] = len(idle)
    row['idle layers'] = idle[:5]


def attempts(zoo: str, model, size: int) -> list:
    """Ways to take a step, best first: (name, function that returns a scalar)."""
    mean = getattr(model.data_preprocessor, 'mean', None)
    channels = image_channels(model) if mean is None else mean.numel()
    images = [torch.randint(0, 256, (channels, size, size), dtype=torch.uint8) for _ in range(2)]
    views = dict(mmdet=[images], mmseg=[images], mmpretrain=[images, [images, images]])[zoo]
    ways = [('loss', lambda v=v: loss_of(zoo, model, v, size)) for v in views]
    tensor = torch.randn(2, channels, size, size)
    return [*ways, ('outputs', lambda: outputs_of(zoo, model, tensor))]


def image_channels(model) -> int:
    """Input channels of the first convolution, if it can read an image."""
    first = next((m.in_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)), 3)
    return first if first <= 4 else 3


def loss_of(zoo: str, model, images, size: int):
    """The sum of the losses, as mmengine computes it."""
    batch = dict(inputs=images, data_samples=[SAMPLES[zoo](size, model) for _ in range(2)])
    preprocessor = model.data_preprocessor
    preprocessor.batch_augments = None  # they pad small images to the size of the real training
    if zoo == 'mmseg':
        preprocessor.size, preprocessor.size_divisor = (size, size), None
    if isinstance(images[0], list):
        batch['inputs'] = [torch.stack(view) for view in images]
    data = preprocessor(batch, training=True)
    losses = model(**data, mode='loss')
    total, _ = model.parse_losses(losses)
    if not torch.isfinite(total):
        raise ValueError('the loss is not finite')
    return total


def outputs_of(zoo: str, model, tensor):
    """The sum of what the backbone, the neck and dense heads return."""

    inner = getattr(model, 'detector', None) or getattr(model, 'student', None) or model

    def forward(images):
        if zoo == 'mmpretrain':
            return type(model).forward(model, images, mode='tensor')
        found = inner.extract_feat(images)
        for head in ('bbox_head', 'decode_head', 'rpn_head'):
            if hasattr(inner, head):
                return getattr(inner, head)(found)
        return found

    model.forward = forward  # the call of the model is what quantizers take for an iteration
    try:
        return sum(t.float().mean() for t in tensors(model(tensor)) if t.requires_grad)
    finally:
        del model.forward


def tensors(value) -> list:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


def detection(size: int, model):
    """A detection sample with boxes, masks and a segmentation map."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    shape = (size, size)
    meta = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), shape)
    sample = DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0), img_id=0, flip=False, text='a . b . c'))
    edge = size / 8
    boxes = torch.tensor([[edge, edge, 5 * edge, 5 * edge], [2 * edge, 3 * edge, 7 * edge, 7 * edge]])
    masks = np.zeros((2, size, size), dtype=np.uint8)
    for mask, box in zip(masks, boxes.int().tolist()):
        mask[box[1] : box[3], box[0] : box[2]] = 1
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 0]), masks=BitmapMasks(masks, *shape))
    sample.gt_instances.instances_ids = torch.tensor([0, 1])
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    sample.proposals = InstanceData(bboxes=boxes.clone(), labels=torch.zeros(2), scores=torch.ones(2))
    sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, *shape, dtype=torch.long))
    return sample


def segmentation(size: int, model):
    """A segmentation sample with a label and an edge map."""
    from mmseg.structures import SegDataSample

    shape = (size, size)
    sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
    label = torch.zeros(1, *shape, dtype=torch.long)
    label[..., size // 2 :] = 1
    sample.gt_sem_seg = PixelData(data=label)
    sample.gt_edge_map = PixelData(data=label.clone())
    return sample


def classification(size: int, model):
    """A classification sample with a label and, for masked image modelling, a mask."""
    from mmpretrain.structures import DataSample

    sample = DataSample(metainfo=dict(num_classes=1000)).set_gt_label(1)
    patch = 4 if 'SimMIM' in type(model).__name__ else 16
    mask = torch.zeros(size // patch, size // patch, dtype=torch.bool)
    mask[::2] = True
    sample.set_mask(mask)
    return sample


SAMPLES = dict(mmdet=detection, mmseg=segmentation, mmpretrain=classification)


def table(results: dict) -> str:
    """The results as a markdown page."""
    cpu = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
    lines = [
        '# Coverage of the zoos',
        '',
        f'Written by `python tools/zoo_sweep.py --table docs/coverage.md` on {date.today()}, '
        f'{os.cpu_count()} CPU cores, no GPU ({cpu[1] if cpu else platform.machine()}), '
        f'torch {torch.__version__.split("+")[0]}.',
        '',
        'One config of every architecture folder of the installed packages is built without pretrained weights, '
        'planned and quantized to W2A4. "passed" means: the parameters are the same objects, a float checkpoint loads '
        'with only ranges missing, the groups that `paramwise_cfg` makes are those of the float model, a forward and '
        'backward pass works (step: `loss` on made-up samples, or `outputs`: the sum of the raw outputs, where the '
        'made-up data do not suit the loss), no layer with a gradient is bypassed, and the state dict makes a round '
        'trip. "quantized" counts weight layers: every module whose weight has two or more dimensions. "not built": '
        'the float model cannot be built here. "converted": everything but the training step was tried. '
        'The shares are of what was examined; the folders that were not are listed below each table and count as open.',
        '',
        *summary(results),
    ]
    for zoo in ZOOS:
        rows = {k: r for k, r in results.items() if k.startswith(f'{zoo}/') and r['result'] != 'no model'}
        if not rows:
            continue
        lines += [
            '',
            f'## {zoo}',
            '',
            '| folder | config | layers | quantized | result | step | left in float, or reason |',
        ]
        lines += ['|---|---|---|---|---|---|---|']
        lines += [_line(key, row) for key, row in sorted(rows.items())]
        importlib.import_module(zoo)
        left = [f.name for f in architectures(zoo) if f'{zoo}/{f.name}' not in results]
        if left:
            lines += ['', f'Not examined yet ({len(left)}): {", ".join(left)}.']
    return '\n'.join(lines) + '\n'


def summary(results: dict) -> list[str]:
    """One line a zoo."""
    lines = [
        '| zoo | not examined yet | examined | built | passed | weight layers | quantized | at least 97 % quantized |',
        '|---|' * 2,
    ]
    lines[1] = '|' + '---|' * 8
    for zoo in ZOOS:
        rows = [r for k, r in results.items() if k.startswith(f'{zoo}/') and r['result'] != 'no model']
        built = [r for r in rows if r['result'] != 'not built']
        if not built:
            continue
        passed = sum(r['result'] == 'passed' for r in built)
        layers, quantized = (sum(r.get(key, 0) for r in built) for key in ('layers', 'quantized'))
        missing = sum(f'{zoo}/{folder.name}' not in results for folder in architectures(zoo))
        high = sum(r.get('share', 0) >= 0.97 for r in built)
        lines.append(
            f'| {zoo} | {missing} | {len(rows)} | {len(built)} | {passed} ({passed / len(built):.1%}) | {layers:,} | '
            f'{quantized / max(layers, 1):.2%} | {high} of {len(built)} |'
        )
    return lines


def _line(key: str, row: dict) -> str:
    floats = '; '.join(f'{number} {what}' for what, number in row.get('float', {}).items())
    why = '; '.join(part for part in (row['reason'], floats) if part).replace('|', '/')
    share = f'{row["share"]:.1%}' if 'share' in row else ''
    name, config = key.split('/')[1], row['config'].split('/')[-1].removesuffix('.py')
    return (
        f'| {name} | {config} | {row.get("layers", "")} | {share} | {row["result"]} | {row.get("step", "")} | {why} |'
    )


if __name__ == '__main__':
    main()
