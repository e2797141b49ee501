"""Fold a quantized checkpoint into integers, verify it, write it: python tools/deploy.py CONFIG CHECKPOINT --out DIR"""

import argparse
import json
import os.path as osp
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Optional

from ...deploy.deployment import check_deployment, deploy
from ...deploy.engines import engine_names
from ...deploy.verification.report import Report
from ...errors import ConfigError
from ...files import write_file
from ..deployed.evaluation import evaluate, load_float_model
from ..pipeline_json import write_pipeline
from ..wrappers import unwrap
from .checkpoints import check_checkpoint, use_checkpoint
from .checks import check_data
from .options import add_common_options, load_config
from .runners import build_plain_runner


def parse_args(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint', help='checkpoint of the quantized model')
    parser.add_argument('--out', required=True, help='directory to write')
    parser.add_argument('--batches', type=int, default=2, help='real test batches to verify with')
    parser.add_argument(
        '--export', nargs='+', choices=engine_names(), default=[], help='also write ONNX graphs for these engines'
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
    report = deploy_runner(runner, args.out, *options)
    write_file(Path(args.out, 'report.json'), json.dumps(report.as_dict(), indent=1, default=float) + '\n')
    print(report)
    if args.export:
        reason = write_pipeline(args.out, unwrap(runner.model), cfg)
        print(f'Runs through OpenMMLab only: {reason}' if reason else 'Runs without OpenMMLab too, with mmgdrq_runtime')


def deploy_runner(
    runner,
    out: str,
    batches: int = 2,
    engines: Sequence[str] = (),
    rounds: int = 10,
    test: bool = False,
    float_checkpoint: Optional[str] = None,
) -> Report:
    """Deploy the model of a runner's checkpoint, verified on its test data.

    Args:
        runner: built from a config with ``load_from``; its test data gives the inputs.
        out: directory to write.
        batches: number of test batches to trace and to verify with.
        engines: names of the engines to write ONNX graphs for.
        rounds: how often each graph is timed beside its float counterpart; 0: not at all.
        test: run the test loop with the quantized model, the folded one and each engine.
        float_checkpoint: float weights of the same model, for the test loop as well; None: without them.

    Raises:
        FoldError: the folded model does not agree with the quantized one; nothing is written.
        ConfigError: too few batches or rounds, float weights without a test, or a config without a float model.
        CheckpointError: a checkpoint does not fit the config, or ``out`` cannot be replaced.
        ExportError: a graph cannot be made, or its engine is not installed or computes something else.
    """
    model = unwrap(runner.model)
    _check_arguments(batches, rounds, test, float_checkpoint)
    check_deployment(model, out, engines)
    floating = load_float_model(runner.cfg, float_checkpoint) if float_checkpoint else None
    runner.call_hook('before_run')
    runner.load_or_resume()
    inputs = list(islice(runner.build_dataloader(runner.cfg.test_dataloader), batches))
    return deploy(
        model,
        inputs,
        lambda target, batch: target.test_step(batch),
        out,
        engines,
        rounds,
        runner.cfg.pretty_text,
        (lambda target: evaluate(runner, target)) if test else None,
        floating if floating is None else floating.to(next(model.parameters()).device),
        runner.logger.info,
    )


def _check_arguments(batches: int, rounds: int, test: bool, float_checkpoint: Optional[str]) -> None:
    if batches < 1:
        raise ConfigError(f'--batches {batches}: expected 1 or more; the folded model is verified on them')
    if rounds < 0:
        raise ConfigError(f'--rounds {rounds}: expected 0 (no timing) or more')
    if float_checkpoint and not test:
        raise ConfigError('--float: needs --evaluate, which compares the metrics')
