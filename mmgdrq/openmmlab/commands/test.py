"""Evaluate a checkpoint, or a directory that tools/deploy.py wrote: python tools/test.py CONFIG CHECKPOINT"""

import argparse
import json
import os.path as osp
from collections.abc import Sequence
from typing import Any, Optional

from mmgdrq_runtime.engines import ENGINES

from ...errors import ConfigError
from ...files import write_file
from ..config_parts import class_name
from .checkpoints import use_checkpoint
from .checks import check_data
from .options import add_common_options, load_config
from .runners import build_runner

HOOKS = {
    'mmdet': dict(type='DetVisualizationHook'),
    'mmseg': dict(type='SegVisualizationHook'),
    'mmpretrain': dict(type='VisualizationHook'),
}
"""Scope -> the hook that draws, where the config has none."""


def parse_args(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='checkpoint file, or deployed directory')
    parser.add_argument('--out', help='file (.pkl) for the predictions')
    parser.add_argument('--metrics', help='file (.json) for the metrics')
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument('--show-dir', help='directory for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between pictures')
    parser.add_argument('--engine', choices=ENGINES, help='run a deployed directory in this engine')
    add_common_options(parser)
    return parser.parse_args(arguments)


def draw_predictions(cfg, args: argparse.Namespace) -> None:
    """Switch on the visualization hook that the config's OpenMMLab package provides, for every image."""
    found = (cfg.get('default_hooks') or {}).get('visualization') or HOOKS.get(cfg.get('default_scope'))
    if found is None:
        raise ConfigError('--show/--show-dir: the config has no default_hooks.visualization to draw with')
    hook: dict[str, Any] = dict(found)
    folder = osp.abspath(args.show_dir) if args.show_dir else None
    hook.update(show=args.show, wait_time=args.wait_time)
    kind = class_name(hook.get('type'))
    if kind == 'SegVisualizationHook':
        hook.update(draw=True, interval=1)
        _draw_with_mmseg(cfg, args.show, folder)
    elif kind == 'VisualizationHook':  # mmpretrain
        hook.update(enable=True, interval=1, out_dir=folder)
    else:
        hook.update(draw=True, test_out_dir=folder)
    cfg.default_hooks = {**(cfg.get('default_hooks') or {}), 'visualization': hook}


def _draw_with_mmseg(cfg, show: bool, folder: Optional[str]) -> None:
    """Its hook leaves the writing to the visualizer, which writes nothing while it shows.

    It asks for the present iteration too, for which mmengine would need the training data.
    """
    if show and folder:
        raise ConfigError('--show --show-dir: mmseg either shows pictures or writes them. Leave one of the two out')
    cfg.update(dict.fromkeys(('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')))
    if folder:
        cfg.visualizer = {'type': 'SegLocalVisualizer', 'name': 'visualizer', **(cfg.get('visualizer') or {})}
        cfg.visualizer.update(save_dir=folder, vis_backends=[dict(type='LocalVisBackend')])


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command; ``arguments`` are those of the command line unless they are given."""
    args = parse_args(arguments)
    cfg = load_config(args)
    check_data(cfg, 'test')
    use_checkpoint(cfg, args.checkpoint, args.engine)
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.out:
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        cfg.test_evaluator = [*evaluators, dict(type='DumpResults', out_file_path=args.out)]
    metrics = build_runner(cfg).test()
    if args.metrics:
        write_file(args.metrics, json.dumps(metrics, indent=1, default=float) + '\n')  # numpy numbers as well
