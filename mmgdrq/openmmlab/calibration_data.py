"""The images of a config that a calibration looks at: those of one split, as the test loop reads them."""

import copy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from ..errors import ConfigError

SEED = 0
"""Of the choice of images: data sets are often sorted by class, so the first ones would not do."""


def calibration_loader(cfg: Config, split: str, images: int) -> DataLoader:
    """A data loader of ``images`` images of a split, drawn at random but always the same ones, with the test pipeline.

    Batch size and workers are those of the test data loader (or that of validation, where there is none).

    Args:
        cfg: the config of a runner, whose default scope is set.
        split: ``'train'``, ``'val'`` or ``'test'``.
        images: how many; fewer where the data set is smaller.

    Raises:
        ConfigError: the config has no data loader of that split, none to evaluate with, or none whose pipeline could
            be exchanged.
    """
    source = _loader(cfg, split)
    evaluated = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if evaluated is None:
        raise ConfigError(
            'config: it has neither test_dataloader nor val_dataloader, so nothing says how images are read without '
            'augmentation. Add one of them'
        )
    dataset = DATASETS.build(_read_as(source['dataset'], evaluated['dataset'], split))
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(SEED))[:images]
    options = {key: value for key, value in evaluated.items() if key not in ('dataset', 'sampler', 'batch_sampler')}
    options.update(
        dataset=Subset(dataset, chosen.tolist()),
        sampler=dict(type='DefaultSampler', shuffle=False),
        persistent_workers=False,
        drop_last=False,
    )
    return Runner.build_dataloader(options)


def _loader(cfg: Config, split: str) -> dict:
    loader = cfg.get(f'{split}_dataloader')
    if not isinstance(loader, dict) or not isinstance(loader.get('dataset'), dict):
        raise ConfigError(f'--split {split}: the config has no {split}_dataloader with a dataset. Choose another split')
    return loader


def _read_as(dataset: dict, evaluated: dict, split: str) -> dict:
    """The data set with the pipeline of the evaluated one, without wrappers that mix or repeat images."""
    dataset = copy.deepcopy(_innermost(dataset))
    parts = dataset.get('datasets') or [dataset]
    pipelines = [part['pipeline'] for part in _parts(evaluated) if 'pipeline' in part]
    for part in map(_innermost, parts):
        if 'pipeline' in part and not pipelines:
            raise ConfigError(
                f'--split {split}: the data set to evaluate with has no pipeline that could replace the one of '
                'training. Choose --split test'
            )
        if 'pipeline' in part:
            part['pipeline'] = copy.deepcopy(pipelines[0])
    return dataset


def _innermost(dataset: Any) -> Any:
    while isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    return dataset


def _parts(dataset: dict) -> list[dict]:
    dataset = _innermost(dataset)
    return [part for inner in dataset['datasets'] for part in _parts(inner)] if 'datasets' in dataset else [dataset]
