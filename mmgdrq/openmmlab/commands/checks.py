"""Check that the data and the device that a config asks for are there."""

import inspect
import os.path as osp
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.registry import DATASETS

from ...errors import ConfigError
from ..config_parts import class_name

DATA_FREE_CONFIG = 'configs/gdrq/faster_rcnn_r18_fpn_digits_w2a4.py'


def check_amp(cfg: Config) -> None:
    """Check that there is a device for the mixed precision that a config asks for.

    Raises:
        ConfigError: there is none.
    """
    asked = class_name((cfg.get('optim_wrapper') or {}).get('type'))
    available = (is_cuda_available, is_npu_available, is_mlu_available, is_musa_available)
    if asked == 'AmpOptimWrapper' and not any(check() for check in available):
        raise ConfigError(
            'optim_wrapper: AmpOptimWrapper (--amp) trains on a GPU only, and torch finds none. Train without it'
        )


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
                        f'data of yours, {DATA_FREE_CONFIG} runs on digits that `python demo/make_digits.py` makes'
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
