"""The architectures of the OpenMMLab zoos and their float models, for dev/zoo_sweep.py."""

import importlib
import os
import re
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmgdrq.openmmlab.config_parts import without_weights

ZOOS = ('mmdet', 'mmseg', 'mmpretrain')
NO_MODELS = ('_base_', 'common', 'scratch', 'misc', 'legacy_1.x', 'albu_example')
SMALL = ('r18', 'tiny', 'atto', 'nano', '-t', '_t', '-s_', '-b0', 'b0', 'small', '-s', 'r50', 'base')
ABSENT = 'optional dependency absent'


class NoModelError(ValueError):
    """A config holds no model."""


def root_of(zoo: str) -> Path:
    """The folder that holds ``configs`` of an installed package."""
    return Path(importlib.import_module(zoo).__file__).parent / '.mim'


def architectures(zoo: str) -> list[Path]:
    """Folders of a zoo that hold configs of models."""
    folders = sorted((root_of(zoo) / 'configs').iterdir())
    return [f for f in folders if f.is_dir() and f.name not in NO_MODELS and any(f.rglob('*.py'))]


def candidates(folder: Path) -> list[Path]:
    """The configs of a folder; those with a small model first, and of these the ones with a short name."""
    files = [f for f in sorted(folder.glob('*.py')) or sorted(folder.rglob('*.py')) if f.name[0] != '_']

    def cost(file: Path) -> tuple:
        rank = next((i for i, hint in enumerate(SMALL) if hint in file.stem), len(SMALL))
        return 'headless' in file.stem or 'dsdl' in file.stem, rank, len(file.stem), file.stem

    return sorted(files, key=cost)


def build(zoo: str, file: Path) -> tuple[nn.Module, Config]:
    """The float model of a config, without downloads, as mmengine's Runner would build it.

    Raises:
        NoModelError: the config holds no model.
    """
    os.chdir(root_of(zoo))  # some configs name those of a teacher relative to it
    cfg = Config.fromfile(file)
    init_default_scope(zoo)
    if 'model' not in cfg:
        raise NoModelError('the config holds no model')
    model = without_sync_bn(without_weights(cfg.model))
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    if 'text_encoder' in model:
        model.text_encoder.templates = ['a photo of a {}.']  # fourteen sentences a class take minutes
    return MODELS.build(model), cfg


def without_sync_bn(model):
    """The model's config without synchronized BN."""
    if isinstance(model, dict):
        return type(model)({key: without_sync_bn(value) for key, value in model.items()})
    if isinstance(model, (list, tuple)):
        return type(model)(map(without_sync_bn, model))
    return 'BN' if isinstance(model, str) and model in ('SyncBN', 'MMSyncBN') else model


def reason_not_built(error: BaseException) -> str:
    """Whether a package or a file is missing, or something else."""
    text = f'{error} {error.__cause__ or ""}'
    missing = re.search(r"No module named '([\w.]+)'|(\w+) is not installed|pip install `?\"?(?:-r )?([^\s`\"]+)", text)
    if missing:
        return f'{ABSENT}: {(missing[1] or missing[2] or missing[3]).rstrip(".")}'
    if 'urlopen' in text:
        return 'downloads a teacher network while it is built'
    return describe(error.__cause__ or error)


def describe(error: BaseException) -> str:
    """One line about an error."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:160]}'
