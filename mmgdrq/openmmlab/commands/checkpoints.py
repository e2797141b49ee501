"""Choose and check the checkpoint that a command loads."""

import os.path as osp
import re
import zipfile
from pathlib import Path
from typing import Optional, Union

from mmengine.config import Config

from ...deploy import is_deployed
from ...errors import CheckpointError, ConfigError
from ..config_parts import class_name
from .runners import add_hook


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


def damage_of(path: Union[str, Path]) -> str:
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
        named = Path((folder / 'last_checkpoint').read_text(encoding='utf-8').strip())
    except (OSError, ValueError):
        return saved
    return [named, *(path for path in saved if path.name != named.name)] if named.is_file() else saved


def name_teacher(cfg: Config) -> None:
    """Let the teacher of a distillation have the weights that the training starts from, when it is resumed as well."""
    for hook in cfg.get('custom_hooks') or []:
        distill = hook.get('distill')
        if class_name(hook.get('type')) == 'GDRQHook' and isinstance(distill, dict) and cfg.get('load_from'):
            hook['distill'] = {'checkpoint': cfg.load_from, **distill}


def save_whole_checkpoints(cfg: Config) -> None:
    """Put :class:`~mmgdrq.openmmlab.hooks.SafeCheckpointHook` in place of mmengine's CheckpointHook."""
    hooks = dict(cfg.get('default_hooks') or {})
    hook = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    kind = str(hook.get('type')) if hook else ''
    if class_name(kind) == 'CheckpointHook' and kind.partition('.')[0] in ('CheckpointHook', 'mmengine'):
        hooks['checkpoint'] = {**hook, 'type': 'mmgdrq.CheckpointHook'}
    cfg.default_hooks = hooks
