"""Evaluate a checkpoint, or a directory that tools/deploy.py wrote: python tools/test.py CONFIG CHECKPOINT"""

import argparse
import json

from mmgdrq import cli
from mmgdrq.deploy.engines import ENGINES
from mmgdrq.errors import ConfigError
from mmgdrq.files import write_file


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='checkpoint file, or deployed directory')
    parser.add_argument('--out', help='file (.pkl) for the predictions')
    parser.add_argument('--metrics', help='file (.json) for the metrics')
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument('--show-dir', help='directory for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between pictures')
    parser.add_argument('--engine', choices=ENGINES, help='run a deployed directory in this engine')
    cli.add_common_options(parser)
    return parser.parse_args()


def draw_predictions(cfg, args: argparse.Namespace) -> None:
    """Switch on the visualization hook that the config's OpenMMLab package provides."""
    hooks = cfg.get('default_hooks') or {}
    if 'visualization' not in hooks:
        raise ConfigError('--show/--show-dir: the config has no default_hooks.visualization to draw with')
    hooks.visualization.update(draw=True, show=args.show, wait_time=args.wait_time)
    if args.show_dir:
        hooks.visualization.test_out_dir = args.show_dir


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args)
    cli.check_data(cfg, 'test')
    cli.use_checkpoint(cfg, args.checkpoint, args.engine)
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.out:
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        cfg.test_evaluator = [*evaluators, dict(type='DumpResults', out_file_path=args.out)]
    metrics = cli.build_runner(cfg).test()
    if args.metrics:
        write_file(args.metrics, json.dumps(metrics, indent=1, default=float) + '\n')  # numpy numbers as well


if __name__ == '__main__':
    cli.run_tool(main)
