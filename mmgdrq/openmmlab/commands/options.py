"""Read the options that the command line tools share."""

import argparse
import os
import os.path as osp

from mmengine.config import Config, DictAction

from ...errors import ConfigError
from ..config_parts import name_types
from ..deployed.old_paths import use_registered_names


class ConfigOptions(DictAction):
    """``key=value`` pairs; anything else is an error."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for text in values or ():
            if '=' not in text:
                raise ConfigError(f'{option_string} {text}: expected key=value, such as train_cfg.max_epochs=3')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:  # brackets that do not match
            raise ConfigError(f'{option_string}: {error}') from None


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options that the OpenMMLab tools have in common."""
    parser.add_argument('--work-dir', help='directory for logs and results')
    add_config_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """The option that overrides values of the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help='override config values, key=value; lists as key="[a,b]"',
    )


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that ``args`` names and apply the common options.

    Raises:
        ConfigError: the file does not exist, or an option does not fit it.
    """
    if not osp.isfile(args.config):
        raise ConfigError(f'config: {args.config} does not exist')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    name_types(cfg._cfg_dict)
    use_registered_names(cfg._cfg_dict)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        try:
            cfg.merge_from_dict(args.cfg_options)
        except (KeyError, TypeError) as error:
            raise ConfigError(f'--cfg-options: {error.args[0]}') from None
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    return cfg
