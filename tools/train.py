"""Train a model: python tools/train.py CONFIG"""

import argparse

from mmgdrq import cli


def parse_args() -> argparse.Namespace:
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
    cli.add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args)
    cli.check_data(cfg, 'train', 'val')
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    cli.check_amp(cfg)
    if args.auto_scale_lr:
        cfg.merge_from_dict({'auto_scale_lr.enable': True})
    if args.resume == 'auto':
        cli.resume_latest(cfg)
    elif args.resume:
        cfg.resume, cfg.load_from = True, args.resume
    cli.check_start(cfg)
    cli.add_hook(cfg, type='mmgdrq.CheckpointFitHook', whole=bool(cfg.get('resume')))
    cli.save_whole_checkpoints(cfg)
    cli.build_runner(cfg).train()


if __name__ == '__main__':
    cli.run_tool(main)
