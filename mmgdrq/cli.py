"""What the command line tools share: options, config, data check, one-line errors."""

import argparse
import os
import os.path as osp
import sys
import zipfile
from collections.abc import Iterator
from typing import Any, Callable, Optional

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .deploy import is_deployed
from .errors import CheckpointError, ConfigError, MMGDRQError

DATA_FREE_CONFIG = 'configs/gdrq/faster_rcnn_r18_fpn_digits_w2a4.py'


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options that the OpenMMLab tools have in common."""
    parser.add_argument('--work-dir', help='directory for logs and results')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override config values, key=value; lists as key="[a,b]"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that ``args`` names and apply the common options.

    Raises:
        ConfigError: the file does not exist.
    """
    if not osp.isfile(args.config):
        raise ConfigError(f'config: {args.config} does not exist')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', name)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config names."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def add_hook(cfg: Config, **hook: Any) -> None:
    """Append a hook to the config's ``custom_hooks``."""
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def use_checkpoint(cfg: Config, path: str, engine: Optional[str] = None) -> None:
    """Let the config load a checkpoint file, or a directory that ``tools/deploy.py`` wrote.

    Raises:
        ConfigError: ``path`` is neither.
    """
    if osp.isdir(path):
        if not is_deployed(path):
            raise ConfigError(f'checkpoint: {path} is a directory, but not one that tools/deploy.py wrote')
        cfg.load_from = None
        add_hook(cfg, type='mmgdrq.DeployedModelHook', path=path, engine=engine)
        return
    if engine is not None:
        raise ConfigError(
            f'--engine {engine}: {path} is a checkpoint; engines run a directory of tools/deploy.py --export'
        )
    check_checkpoint(path)
    cfg.load_from = path
    add_hook(cfg, type='mmgdrq.CheckpointFitHook')


def check_checkpoint(path: str) -> None:
    """Check that a local checkpoint exists and is whole; a URL is left to mmengine.

    Raises:
        ConfigError: it does not exist.
        CheckpointError: it is empty or was cut off.
    """
    if '://' in path:
        return
    if not osp.isfile(path):
        raise ConfigError(f'checkpoint: {path} does not exist')
    with open(path, 'rb') as stream:
        start = stream.read(2)
    if not start or (start == b'PK' and not zipfile.is_zipfile(path)):
        raise CheckpointError(
            f'checkpoint: {path} is empty or cut off ({osp.getsize(path):,} bytes). Copy it again, or use '
            'an earlier one'
        )


def check_data(cfg: Config, *splits: str) -> None:
    """Check that the data sets of ``splits`` are where the config expects them.

    Args:
        splits: names such as ``'train'`` and ``'test'``; the dataloader of each is looked at.

    Raises:
        ConfigError: says where the data is expected, how to point elsewhere, and what runs without it.
    """
    for split in splits:
        key = f'{split}_dataloader'
        for where, dataset in _datasets(cfg.get(key), f'{key}.dataset'):
            for path in _paths(dataset):
                if '://' not in path and not osp.exists(path):
                    raise ConfigError(
                        f'{where}: its data is expected at {osp.abspath(path)}, which does not exist. Put or link '
                        f'it there, or point elsewhere with --cfg-options {where}.data_root=DIR/. Without any '
                        f'data of yours, {DATA_FREE_CONFIG} runs on digits that `python tools/make_digits.py` makes'
                    )


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; an error that mmgdrq raised on purpose ends it with one line and exit status 2."""
    try:
        main()
    except MMGDRQError as error:
        sys.exit(_fail(error))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, MMGDRQError):
            sys.exit(_fail(cause))
        raise


def _fail(error: Exception) -> int:
    print(f'error: {error}', file=sys.stderr)
    return 2


def _datasets(loader: Any, where: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(loader, dict) or 'dataset' not in loader:
        return
    pending: list[tuple[str, Any]] = [(where, loader['dataset'])]
    while pending:
        where, dataset = pending.pop()
        inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
        if not inner:
            yield where, dataset
        names = [f'{where}.dataset'] if 'dataset' in dataset else [f'{where}.datasets.{i}' for i in range(len(inner))]
        pending += zip(names, inner)


def _paths(dataset: Any) -> list[str]:
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    parts = [dataset.get('ann_file')]
    parts += list(prefix.values()) if isinstance(prefix, dict) else [prefix]
    paths = [osp.join(root, part) for part in parts if isinstance(part, str) and part]
    return paths or ([root] if root else [])
