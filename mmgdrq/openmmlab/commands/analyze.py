"""How well the distributions of a checkpoint suit its quantizers: python tools/analyze.py CONFIG CHECKPOINT --out DIR

The config is a quantized one; the checkpoint may be float or quantized.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Optional

from ... import analysis
from ...analysis.plots import plot_weights
from ...errors import ConfigError
from ...files import write_file
from ...layers import ActivationQuantizer
from ...layers.walk import all_modules
from ...quantized_model.stages import get_stage, set_stage
from ...quantized_model.state import is_root
from .checkpoints import check_checkpoint
from .checks import check_data
from .options import add_common_options, load_config
from .runners import add_hook, build_plain_runner


def parse_args(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', type=Path, required=True, help='directory for report.json, report.txt and weights.png')
    parser.add_argument('--batches', type=int, default=2, help='batches of test data for the inputs; 0: weights only')
    add_common_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command; ``arguments`` are those of the command line unless they are given."""
    args = parse_args(arguments)
    cfg = load_config(args)
    if args.batches < 0:
        raise ConfigError(f'--batches {args.batches}: expected 0 (weights only) or more')
    check_checkpoint(args.checkpoint)
    if args.batches:
        check_data(cfg, 'test')
    cfg.load_from = args.checkpoint
    add_hook(cfg, type='mmgdrq.CheckpointFitHook', whole=True, float_weights=True)
    runner = build_plain_runner(cfg)
    runner.call_hook('before_run')
    runner.load_or_resume()
    model = runner.model.eval()
    if not is_root(model):
        raise ConfigError(f'config: {args.config} quantizes nothing. Add GDRQHook or mmgdrq.Quantized')
    if not all(m.is_ready() for m in all_modules(model) if isinstance(m, ActivationQuantizer)):
        set_stage(model, 'float')
    batches = list(islice(runner.build_dataloader(cfg.test_dataloader), args.batches)) if args.batches else []

    def run(target) -> None:
        for batch in batches:
            target.test_step(batch)

    reports = analysis.analyze(model, run if batches else None)
    table = f'{args.checkpoint}, stage {get_stage(model)}\n{analysis.format_table(reports)}'
    print(table)
    write_file(args.out / 'report.txt', table + '\n')
    write_file(args.out / 'report.json', json.dumps([asdict(r) for r in reports], indent=1) + '\n')
    plot_weights({'weights': model}, args.out / 'weights.png')
