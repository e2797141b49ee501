"""Print which layers a training would quantize, and why not the others: python tools/plan.py CONFIG

The model is built without its weights and its data.
"""

import argparse
import tempfile
from collections.abc import Sequence
from typing import Optional

from mmengine.config import Config
from mmengine.runner import Runner

from ...errors import ConfigError
from ...planning.plan import Plan
from ...quantized_model.state import is_root, state_of
from ..config_parts import without_weights
from ..hooks import GDRQHook
from .options import add_config_options, load_config

NEEDED = ('model', 'data_preprocessor', 'default_scope', 'custom_hooks', 'efficient_conv_bn_eval')
"""Keys that decide about the plan. Without all others the runner writes nothing and needs no data."""


def parse_args(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    add_config_options(parser)
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)
    return parser.parse_args(arguments)


def plan_of(cfg: Config, name: str) -> Plan:
    """The plan of the model that a runner would train.

    Args:
        cfg: any config with a model.
        name: what errors call the config.

    Raises:
        ConfigError: nothing quantizes the model, or it cannot be quantized so.
    """
    needed = {key: without_weights(cfg[key]) for key in NEEDED if cfg.get(key) is not None}
    if 'model' not in needed:
        raise ConfigError(f'config: {name} has no model')
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner.from_cfg(Config(dict(needed, work_dir=folder, log_level='ERROR', experiment_name=folder)))
        for hook in runner.hooks:
            if isinstance(hook, GDRQHook):
                hook.before_run(runner)
    plan = state_of(runner.model).plan if is_root(runner.model) else None
    if plan is None:
        raise ConfigError(
            f'config: {name} has no plan: nothing quantizes the whole model. Add GDRQHook or mmgdrq.Quantized'
        )
    return plan


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command; ``arguments`` are those of the command line unless they are given."""
    args = parse_args(arguments)
    print(plan_of(load_config(args), args.config))
