"""What the command line tools share: options, config, data check, one-line errors."""

import argparse
import errno
import inspect
import logging
import os
import os.path as osp
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

from mmengine.config import Config, DictAction
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.registry import DATASETS, RUNNERS
from mmengine.runner import Runner
from torch import distributed

from .compat import load_weights_only
from .config_parts import class_name
from .deploy import is_deployed
from .errors import CheckpointError, ConfigError, MMGDRQError

DATA_FREE_CONFIG = 'configs/gdrq/faster_rcnn_r18_fpn_digits_w2a4.py'

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a file system without room."""


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


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config names."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def build_plain_runner(cfg: Config) -> Runner:
    """Build a runner that has model and data at hand, which a FlexibleRunner builds only when it starts."""
    if class_name(cfg.get('runner_type')) == 'FlexibleRunner':
        for key in ('runner_type', 'strategy'):
            cfg.pop(key, None)
    return build_runner(cfg)


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
    add_hook(cfg, type='mmgdrq.CheckpointFitHook', whole=True)


def check_checkpoint(path: str) -> None:
    """Check that a local checkpoint exists and is whole; a URL is left to mmengine.

    Raises:
        ConfigError: it does not exist.
        CheckpointError: it is empty, was cut off, or is something else.
    """
    if '://' in path:
        return
    if not osp.isfile(path):
        raise ConfigError(f'checkpoint: {path} does not exist')
    damage = damage_of(path)
    if damage:
        raise CheckpointError(
            f'checkpoint: {path} {damage} ({osp.getsize(path):,} bytes). Copy it again, or use an earlier one'
        )


def check_start(cfg: Config) -> None:
    """Check the checkpoint that a training starts from.

    Raises:
        ConfigError: it does not exist; the message names the config beside this one that makes it, if there is one.
        CheckpointError: it is damaged.
    """
    path = cfg.get('load_from')
    if not path:
        return
    folder = Path(path).parent
    maker = Path(cfg.filename or '').parent / f'{folder.name}.py'
    if folder.parent.name == 'work_dirs' and not osp.isfile(path) and maker.is_file():
        raise ConfigError(
            f'load_from: {path} does not exist. Train {osp.relpath(maker)} first, or name another checkpoint with '
            '--cfg-options load_from=FILE'
        )
    check_checkpoint(path)


def check_amp(cfg: Config) -> None:
    """Check that there is a device for the mixed precision that a config asks for.

    Raises:
        ConfigError: there is none.
    """
    asked = (cfg.get('optim_wrapper') or {}).get('type')
    available = (is_cuda_available, is_npu_available, is_mlu_available, is_musa_available)
    if asked == 'AmpOptimWrapper' and not any(check() for check in available):
        raise ConfigError(
            'optim_wrapper: AmpOptimWrapper (--amp) trains on a GPU only, and torch finds none. Train without it'
        )


def damage_of(path: str) -> str:
    """What is wrong with a checkpoint file, as far as its frame shows; empty if nothing."""
    with open(path, 'rb') as stream:
        start = stream.read(2)
    if not start or (start == b'PK' and not zipfile.is_zipfile(path)):
        return 'is empty or cut off'
    return '' if start == b'PK' or start[:1] == b'\x80' else 'is not a checkpoint of torch'


def resume_latest(cfg: Config) -> None:
    """Let the config resume from the latest whole checkpoint of its work directory.

    That is the one that ``last_checkpoint`` names, or the newest ``epoch_N.pth`` or ``iter_N.pth`` where that
    file is missing or damaged. Without any checkpoint the training starts as it does without ``--resume``.

    Raises:
        CheckpointError: there are checkpoints, but all of them are damaged.
    """
    found = _checkpoints_of(Path(cfg.work_dir))
    damaged = [str(path) for path in found if '://' not in str(path) and damage_of(path)]
    whole = [str(path) for path in found if str(path) not in damaged]
    if found and not whole:
        raise CheckpointError(
            f'--resume: no checkpoint in {cfg.work_dir} is whole, the latest is {damaged[0]}. Name one with '
            '--resume CHECKPOINT, or use another --work-dir'
        )
    for path in damaged[: found.index(Path(whole[0])) if whole else 0]:
        print(f'--resume: {path} is damaged and left out')
    cfg.resume = bool(whole)
    if whole:
        cfg.load_from = whole[0]
    else:
        print(f'--resume: {cfg.work_dir} has no checkpoint; the training starts from the beginning')


def _checkpoints_of(folder: Path) -> list[Path]:
    """Checkpoints of a work directory: the one that was named the last, then the others, newest first."""
    saved = [path for path in folder.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+', path.stem)]
    saved.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    try:
        named = Path((folder / 'last_checkpoint').read_text().strip())
    except (OSError, ValueError):
        return saved
    return [named, *(path for path in saved if path.name != named.name)] if named.is_file() else saved


def save_whole_checkpoints(cfg: Config) -> None:
    """Put :class:`~mmgdrq.hooks.SafeCheckpointHook` in place of mmengine's CheckpointHook."""
    hooks = dict(cfg.get('default_hooks') or {})
    hook = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    if hook and hook.get('type') in ('CheckpointHook', 'mmengine.CheckpointHook'):
        hooks['checkpoint'] = {**hook, 'type': 'mmgdrq.CheckpointHook'}
    cfg.default_hooks = hooks


def check_data(cfg: Config, *splits: str) -> None:
    """Check that the data sets of ``splits`` are where the config expects them, or are downloaded.

    Args:
        splits: names such as ``'train'`` and ``'test'``; the dataloader of each is looked at.

    Raises:
        ConfigError: says where the data is expected, how to point elsewhere, and what runs without it.
    """
    for split in splits:
        key = f'{split}_dataloader'
        for where, dataset in _datasets(cfg.get(key), f'{key}.dataset'):
            for path in _paths(dataset):
                if '://' not in path and not osp.exists(path) and not _is_downloaded(dataset, cfg):
                    raise ConfigError(
                        f'{where}: its data is expected at {osp.abspath(path)}, which does not exist. Put or link '
                        f'it there, or point elsewhere with --cfg-options {where}.data_root=DIR/. Without any '
                        f'data of yours, {DATA_FREE_CONFIG} runs on digits that `python tools/make_digits.py` makes'
                    )


def _is_downloaded(dataset: Any, cfg: Config) -> bool:
    """Whether a data set fetches its data by itself, as CIFAR10 of mmpretrain does."""
    if 'download' in dataset:
        return bool(dataset['download'])
    cls = dataset.get('type')
    if isinstance(cls, str):
        with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            cls = registry.get(cls)
    if cls is None:  # building it says so
        return False
    download = inspect.signature(cls).parameters.get('download')
    return download is not None and download.default is True


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool; an error that mmgdrq raised on purpose ends it with one line and exit status 2."""
    load_weights_only()
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)  # by mmengine, not to be mended here
    try:
        main()
        leave_ranks()
    except MMGDRQError as error:
        sys.exit(_fail(error))
    except pickle.UnpicklingError as error:
        reason = str(error).partition('Unsupported')[2].splitlines()
        sys.exit(
            _fail(
                'checkpoint: it is not loaded, because it holds more than tensors and what mmengine writes beside '
                f'them{": unsupported" + reason[0] if reason else ""}. Such a file can run any code; take only its '
                'tensors from a source that you trust'
            )
        )
    except OSError as error:
        if error.errno not in FULL:
            raise
        sys.exit(_fail(f'{error}. What was saved before is whole; make room and go on with --resume'))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, MMGDRQError):
            sys.exit(_fail(cause))
        raise


def leave_ranks() -> None:
    """Wait for the other ranks, one of which may be saving, and end the process group.

    What a launcher does when a rank ends with an abort, as happens now and then with a group that is still there, is
    to kill the others. For the same reason the interpreter is not torn down, while threads of gloo may still run.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _fail(error: object) -> int:
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
