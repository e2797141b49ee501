"""Fold a quantized checkpoint into integers, verify it, write it: python tools/deploy.py CONFIG CHECKPOINT --out DIR"""

import argparse
import json
import os.path as osp
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from ...deploy.engines.block import PROFILES
from ...errors import ConfigError
from ...files import write_file
from ..pipeline_json import write_pipeline
from ..wrappers import unwrap
from .checkpoints import check_checkpoint, use_checkpoint
from .checks import check_data
from .deployment import deploy
from .options import add_common_options, load_config
from .runners import build_plain_runner


def parse_args(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='checkpoint of the quantized model')
    parser.add_argument('--out', required=True, help='directory to write')
    parser.add_argument('--batches', type=int, default=2, help='real test batches to verify with')
    parser.add_argument(
        '--export', nargs='+', choices=PROFILES, default=[], help='also write ONNX graphs for these engines'
    )
    parser.add_argument('--rounds', type=int, default=10, help='timed runs of each graph beside float; 0: none')
    parser.add_argument(
        '--evaluate', action='store_true', help='run the test loop: quantized, folded, and with each engine'
    )
    parser.add_argument('--float', metavar='CHECKPOINT', help='with --evaluate: float weights to compare with')
    add_common_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command; ``arguments`` are those of the command line unless they are given."""
    args = parse_args(arguments)
    cfg = load_config(args)
    check_data(cfg, 'test')
    if osp.isdir(args.checkpoint):
        raise ConfigError(f'checkpoint: {args.checkpoint} is a directory; expected a checkpoint file')
    if args.float:
        check_checkpoint(args.float)
    use_checkpoint(cfg, args.checkpoint)
    # workers that wait for the next epoch crash at exit beside the threads of OpenVINO
    cfg.test_dataloader.persistent_workers = False
    options = (args.batches, args.export, args.rounds, args.evaluate, args.float)
    runner = build_plain_runner(cfg)
    report = deploy(runner, args.out, *options)
    write_file(Path(args.out, 'report.json'), json.dumps(report.as_dict(), indent=1, default=float) + '\n')
    print(report)
    if args.export:
        reason = write_pipeline(args.out, unwrap(runner.model), cfg)
        print(f'Runs through OpenMMLab only: {reason}' if reason else 'Runs without OpenMMLab too, with mmgdrq_runtime')
