"""Train a model: python tools/train.py CONFIG"""

import argparse
from collections.abc import Sequence
from typing import Optional

from .checkpoints import check_start, name_teacher, resume_latest, save_whole_checkpoints
from .checks import check_amp, check_data
from .options import add_common_options, load_config
from .runners import add_hook, build_runner


def parse_args(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='checkpoint to resume from; without a value, the latest one in the work directory',
    )
    add_common_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command; ``arguments`` are those of the command line unless they are given."""
    args = parse_args(arguments)
    cfg = load_config(args)
    check_data(cfg, 'train', 'val')
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    check_amp(cfg)
    if args.auto_scale_lr:
        cfg.merge_from_dict({'auto_scale_lr.enable': True})
    name_teacher(cfg)
    if args.resume == 'auto':
        resume_latest(cfg)
    elif args.resume:
        cfg.resume, cfg.load_from = True, args.resume
    check_start(cfg)
    add_hook(cfg, type='mmgdrq.CheckpointFitHook', whole=bool(cfg.get('resume')))
    save_whole_checkpoints(cfg)
    build_runner(cfg).train()
