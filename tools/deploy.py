"""Fold a quantized checkpoint into integers, verify it, write it: python tools/deploy.py CONFIG CHECKPOINT --out DIR"""

import argparse
import json
import os.path as osp
from pathlib import Path

from mmgdrq import cli
from mmgdrq.deploy.blocks import PROFILES
from mmgdrq.deploy.job import deploy
from mmgdrq.files import write_file


def parse_args() -> argparse.Namespace:
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
    cli.add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args)
    cli.check_data(cfg, 'test')
    if osp.isdir(args.checkpoint):
        raise cli.ConfigError(f'checkpoint: {args.checkpoint} is a directory; expected a checkpoint file')
    if args.float:
        cli.check_checkpoint(args.float)
    cli.use_checkpoint(cfg, args.checkpoint)
    # workers that wait for the next epoch crash at exit beside the threads of OpenVINO
    cfg.test_dataloader.persistent_workers = False
    options = (args.batches, args.export, args.rounds, args.evaluate, args.float)
    report = deploy(cli.build_plain_runner(cfg), args.out, *options)
    write_file(Path(args.out, 'report.json'), json.dumps(report.as_dict(), indent=1, default=float) + '\n')
    print(report)


if __name__ == '__main__':
    cli.run_tool(main)
