"""Quantize one config of every architecture of the OpenMMLab zoos, take a training step, and write what happened.

For every folder of configs of the installed mmdet, mmseg and mmpretrain: build the model without pretrained weights,
plan, quantize, run forward and backward on made-up data, and check that float checkpoints load, that the state dict
makes a round trip, that the parameter groups are those of the float model, that shared layers stay shared, and that no
quantized layer is bypassed. Results are kept in a json file; a second run continues where the first ended.

    python dev/zoo_sweep.py [mmdet mmseg mmpretrain] [--only NAME ...] [--redo] [--out FILE] [--table FILE]
"""

import argparse
import copy
import importlib
import json
import multiprocessing
import re
import resource
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import nn
from zoo_models import ABSENT, ZOOS, NoModelError, architectures, build, candidates, describe, reason_not_built
from zoo_steps import take_step
from zoo_table import page

import mmgdrq
from mmgdrq.quantized_model.loading import quantization_keys

LIMIT = 240
"""Seconds of CPU time for one architecture; ten times as many on the clock."""
TRIES = 4
"""Configs of a folder that are tried until one can be built."""
LARGEST = 350_000_000
"""Parameters above which a model is converted, but takes no step here."""
QUANT = dict(weight=dict(bits=2), activation=dict(bits=4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('zoos', nargs='*', default=ZOOS)
    parser.add_argument('--only', nargs='+', help='names of architecture folders')
    parser.add_argument('--redo', action='store_true', help='forget earlier results of what is asked for')
    parser.add_argument('--out', type=Path, default=Path('docs/coverage.json'))
    parser.add_argument('--table', type=Path, help='write the table to this markdown file')
    args = parser.parse_args()
    results = json.loads(args.out.read_text(encoding='utf-8')) if args.out.exists() else {}
    for zoo in args.zoos:
        importlib.import_module(f'{zoo}.models')
        for folder in architectures(zoo):
            key = f'{zoo}/{folder.name}'
            if (args.only and folder.name not in args.only) or (key in results and not args.redo):
                continue
            row = first_built(zoo, folder)
            if row['result'] != 'failed':  # what is known to be impossible needs no trace
                row = {name: value for name, value in row.items() if 'trace' not in name}
            results[key] = row
            print(key, *(row.get(k, '') for k in ('result', 'share', 'step', 'reason', 'seconds')), flush=True)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(results, indent=1), encoding='utf-8')
    if args.table:
        args.table.write_text(page(results), encoding='utf-8')


def first_built(zoo: str, folder: Path) -> dict:
    """Examine the first config of a folder whose float model can be built."""
    rows = []
    for file in candidates(folder)[:TRIES]:
        rows.append(isolated(zoo, file))
        if rows[-1]['result'] != 'not built' or rows[-1]['reason'].startswith(ABSENT):
            return rows[-1]
    return rows[0]


def isolated(zoo: str, file: Path) -> dict:
    """Examine a config in a process of its own, with a time limit."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(target=_child, args=(zoo, file, sender))
    began = time.time()
    process.start()
    sender.close()
    row: dict = {'result': 'failed', 'reason': f'took more than {10 * LIMIT} seconds'}
    while receiver.poll(max(10 * LIMIT - (time.time() - began), 0)):
        try:
            row = receiver.recv()
        except EOFError:
            if row['reason'].startswith('took'):
                row['reason'] = f'the process ended (more than {LIMIT} seconds, or out of memory)'
            break
    process.kill()
    process.join()
    root = file.parents[len(file.parts) - 1 - file.parts.index('configs') - 1]
    return {'config': f'{zoo}::{file.relative_to(root)}', **row, 'seconds': round(time.time() - began, 1)}


def _child(zoo: str, file: Path, sender) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
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


def examine(zoo: str, file: Path, row: dict, sender) -> None:
    """All checks of one config; ``row`` is filled on the way."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        model, cfg = build(zoo, file)
    except NoModelError as error:
        row.update(result='no model', reason=str(error))
        return
    except Exception as error:
        row.update(result='not built', reason=reason_not_built(error), trace=traceback.format_exc()[-1500:])
        return
    lacking = set(model.load_state_dict(model.state_dict(), strict=False).missing_keys)
    problems = convert(model, cfg, lacking, row)
    describe_plan(model, row)
    row.update(problems=problems, step='not run', result='converted', reason='; '.join(problems))
    sender.send({**row, 'reason': row['reason'] or f'the step took more than {LIMIT} seconds'})
    if sum(p.numel() for p in model.parameters()) > LARGEST:
        row['step'] = row['reason'] = 'too large for a step here'
    else:
        take_step(zoo, model, row, lambda: build(zoo, file)[0])
        problems += round_trip_problems(model, lacking)
    if problems:
        row.update(result='failed', reason='; '.join(problems))
    elif row['step'] != 'not run':
        row['result'] = 'passed'


def convert(model: nn.Module, cfg: Config, lacking: set[str], row: dict) -> list[str]:
    """Quantize ``model`` in place; what is not as it was in the float model."""
    groups, shared = parameter_groups(model, cfg), shared_names(model)
    row['groups'], row['shared'] = len(groups), len(shared)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    names = {id(m): init_names(m) for m in model.modules()}
    numbers = [id(p) for p in model.parameters()]
    mmgdrq.quantize(model, **QUANT)
    problems = []
    if [id(p) for p in model.parameters()] != numbers:
        problems.append('parameters are other objects')
    if groups != parameter_groups(model, cfg):
        problems.append('parameter groups differ')
    if any(not names[id(m)] <= init_names(m) for m in model.modules() if id(m) in names):
        problems.append('init_cfg would match other layers')
    problems += float_checkpoint_problems(model, state, lacking)
    if not shared <= shared_names(model):
        problems.append('shared layers or parameters are no longer shared')
    return problems


def shared_names(model: nn.Module) -> set[frozenset[str]]:
    """The names of every module and parameter that has several."""
    found: dict[int, set[str]] = {}
    for walk in (model.named_modules, model.named_parameters):
        for name, item in walk(remove_duplicate=False):
            found.setdefault(id(item), set()).add(name)
    return {frozenset(names) for names in found.values() if len(names) > 1}


def init_names(module: nn.Module) -> set[str]:
    """The names by which ``init_cfg`` matches a layer."""
    names = {type(module).__name__, *(base.__name__ for base in type(module).__bases__)}
    return {name for name in names if not name.startswith('_')} - {'object', 'Module'}


def parameter_groups(model: nn.Module, cfg: Config) -> list:
    """Settings of every parameter in the optimizer of the config; empty where it cannot be built."""
    names = {id(p): name for name, p in model.named_parameters()}
    asked = copy.deepcopy(cfg.get('optim_wrapper') or {})
    keys = ('optimizer', 'paramwise_cfg', 'constructor')
    wrapper = dict(type='OptimWrapper', **{key: asked[key] for key in keys if key in asked})
    try:
        built = build_optim_wrapper(model, wrapper)
    except Exception:
        return []
    return [
        ([names[id(p)] for p in group['params']], [group.get(key) for key in ('lr', 'weight_decay', 'momentum')])
        for group in built.optimizer.param_groups
    ]


def describe_plan(model: nn.Module, row: dict) -> None:
    """Numbers of the plan, its edges, and what stays in float."""
    plan = mmgdrq.state(model).plan
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


def float_checkpoint_problems(model: nn.Module, state: dict, lacking: set[str]) -> list[str]:
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
def _reset(module: nn.Module) -> None:
    for name, p in module.named_parameters(recurse=False):
        p.normal_(0, 0.02) if p.dim() > 1 else p.fill_(float(name.endswith(('weight', 'gamma', 'scale'))))
    if hasattr(module, 'running_var') and module.running_var is not None:
        module.running_var.fill_(1)


def round_trip_problems(model: nn.Module, lacking: set[str]) -> list[str]:
    """Whether the model loads what it saves."""
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    result = model.load_state_dict(saved, strict=False)
    wrong = {*result.missing_keys, *result.unexpected_keys} - lacking
    problems = [f'state dict: {k}' for k in sorted(wrong)[:1]]
    again = model.state_dict()
    problems += [f'state dict changes {k}' for k in saved if not torch.equal(saved[k], again[k])][:1]
    return problems


if __name__ == '__main__':
    main()
