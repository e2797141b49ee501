"""Quantize a float checkpoint without training: python tools/calibrate.py CONFIG CHECKPOINT --out quantized.pth

The checkpoint that it writes is tested, trained on and deployed like any other. Where CONFIG quantizes nothing, --bits
says to what, and a config that does so is written beside the checkpoint.
"""

import argparse
import copy
import io
import re
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Optional, cast

import torch
from mmengine.config import Config
from mmengine.utils import ProgressBar

from ...errors import ConfigError
from ...files import write_file
from ...layers.walk import is_quantized_model
from ...post_training import CalibrationReport, calibrate
from ...post_training.defaults import activation_defaults, weight_defaults
from ...quant.specs import ACTIVATION_GRIDS
from ..calibration_data import calibration_loader
from ..config_parts import class_name
from ..wrappers import unwrap
from .checkpoints import check_checkpoint
from .checks import check_data
from .options import add_config_options, load_config
from .runners import add_hook, build_plain_runner

SPLITS = ('train', 'val', 'test')


def parse_args(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='checkpoint of the float model')
    parser.add_argument('--out', required=True, help='checkpoint file (.pth) to write')
    parser.add_argument('--images', type=int, default=128, help='images to look at')
    parser.add_argument(
        '--split', choices=SPLITS, default='train', help='whose images; read as the test loop reads them'
    )
    parser.add_argument(
        '--bits', metavar='W8A8', help='bits of weights and activations, where CONFIG quantizes nothing'
    )
    parser.add_argument(
        '--grid', choices=ACTIVATION_GRIDS, help="of activations, beside --bits; 'affine' for SiLU, GELU and depthwise"
    )
    parser.add_argument('--reconstruct', action='store_true', help='round weights of few bits so that outputs stay')
    parser.add_argument('--bias-correction', action='store_true', help='take mean errors out, by BN or bias')
    parser.add_argument('--report', help='file (.json) for plan, ranges and errors')
    parser.add_argument('--work-dir', help='directory for logs')
    add_config_options(parser)
    parser.set_defaults(launcher='none', local_rank=0)
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command; ``arguments`` are those of the command line unless they are given."""
    args = parse_args(arguments)
    out = _check_out(args.out)
    cfg = load_config(args)
    if args.images < 1:
        raise ConfigError(f'--images {args.images}: expected 1 or more')
    check_checkpoint(args.checkpoint)
    _keep_inputs(args, out)
    check_data(cfg, args.split)
    if args.bits:
        quantize_config(cfg, args.bits, args.grid or 'symmetric')
    elif args.grid:
        raise ConfigError('--grid: it goes with --bits. Change activation=dict(grid=...) in the config')
    written = copy.deepcopy(cfg)
    options = (args.images, args.reconstruct, args.bias_correction)
    report = calibrate_checkpoint(cfg, args.checkpoint, out, args.split, *options)
    print(report)
    if args.report:
        write_file(args.report, report.to_json() + '\n')
    if args.bits:
        config = out.with_suffix('.py')
        write_file(config, written.pretty_text)
        print(f'{out} goes with {config}: python tools/test.py {config} {out}')


def calibrate_checkpoint(
    cfg: Config,
    checkpoint: str,
    out: Path,
    split: str,
    images: int,
    reconstruct: bool = False,
    bias_correction: bool = False,
) -> CalibrationReport:
    """Write a quantized checkpoint for a config.

    Args:
        cfg: a config that quantizes its model; it is changed.
        checkpoint: of the float model.
        out: file to write.
        split: whose images.
        images: how many.
        reconstruct, bias_correction: see :func:`mmgdrq.calibrate`.

    Raises:
        ConfigError: the config quantizes nothing.
    """
    cfg.load_from, cfg.resume = checkpoint, False
    add_hook(cfg, type='mmgdrq.CheckpointFitHook', whole=True, float_weights=True)
    runner = build_plain_runner(cfg)
    runner.call_hook('before_run')
    model = unwrap(runner.model)
    if not is_quantized_model(model):
        raise ConfigError(
            'config: nothing in it quantizes the model. Say --bits W8A8, or add GDRQHook or mmgdrq.Quantized to it'
        )
    runner.load_or_resume()
    loader = calibration_loader(cfg, split, images)
    found = len(cast(Sized, loader.dataset))
    if found < images:
        runner.logger.warning('mmgdrq: --split %s has %d images only', split, found)
    report = calibrate(
        model,
        loader,
        progress=lambda batches: _with_bar(batches, len(loader)),
        reconstruct=reconstruct,
        bias_correction=bias_correction,
    )
    hub = runner.message_hub.state_dict()
    state = dict(meta=dict(epoch=0, iter=0), state_dict=model.state_dict(), message_hub=hub)  # resumed: from the start
    stream = io.BytesIO()
    torch.save(state, stream)
    write_file(out, stream.getvalue())
    return report


def quantize_config(cfg: Config, bits: str, grid: str = 'symmetric') -> None:
    """Let a float config quantize its model.

    Args:
        cfg: the config, which is changed.
        bits: such as ``'W8A8'`` or ``'W4A8'``.
        grid: of the activations, ``'symmetric'`` or ``'affine'``.

    Raises:
        ConfigError: they cannot be read, or the config quantizes its model already.
    """
    found = re.fullmatch(r'[wW](\d+)[aA](\d+)', bits)
    if not found:
        raise ConfigError(f'--bits {bits}: expected bits of weights and activations, such as W8A8')
    built = class_name((cfg.get('model') or {}).get('type')) == 'Quantized'
    if built or any(class_name(hook.get('type')) == 'GDRQHook' for hook in cfg.get('custom_hooks') or []):
        raise ConfigError('--bits: the config says already what the model is quantized to. Change it there')
    weight = weight_defaults(dict(bits=int(found[1])))
    activation = activation_defaults(dict(bits=int(found[2]), grid=grid))
    add_hook(
        cfg,
        type='mmgdrq.GDRQHook',
        weight=dict(bits=weight.bits, range=weight.range),
        activation=dict(bits=activation.bits, range=activation.range, grid=activation.grid),
        scale_clip=weight.bits < 4,  # what it projects to would be clipped at more
    )
    imports = cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    names = imports['imports']
    cfg.custom_imports = {**imports, 'imports': [*([names] if isinstance(names, str) else names), 'mmgdrq']}


def _check_out(out: str) -> Path:
    path = Path(out)
    if path.suffix != '.pth':
        raise ConfigError(f'--out {out}: expected the name of a checkpoint file, such as quantized.pth')
    return path


def _keep_inputs(args: argparse.Namespace, out: Path) -> None:
    if _same_file(out, args.checkpoint):
        raise ConfigError(f'--out {out}: it is the float checkpoint, which would be lost. Choose another name')
    config = out.with_suffix('.py')
    if args.bits and _same_file(config, args.config):
        raise ConfigError(
            f'--out {out}: the config beside it would replace {config}, the float config. Choose another name'
        )


def _same_file(written: Path, read: str) -> bool:
    return written.exists() and Path(read).exists() and written.samefile(read)


def _with_bar(batches: Iterable, total: int) -> Iterator:
    bar = ProgressBar(total)
    for batch in batches:
        yield batch
        bar.update()
    print()
