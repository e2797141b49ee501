"""A tiny model, data set and metric, and runners for them."""

from itertools import count
from typing import Any, Optional

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

import mmgdrq
from mmgdrq.errors import MMGDRQError

CLASSES = 4
BATCH = 4
ITERS = 3
"""Iterations an epoch."""

_number = count()


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    """Two convolutions with BN and a linear head."""

    def __init__(self, channels: int = 8, data_preprocessor=None, init_cfg=None) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, inputs, labels=None, mode='tensor'):
        x = F.relu(self.bn1(self.conv1(inputs)))
        x = F.relu(self.bn2(self.conv2(x)))
        logits = self.head(x.mean((2, 3)))
        if mode == 'loss':
            return dict(loss=F.cross_entropy(logits.float(), labels))
        if mode == 'predict':
            return [dict(logits=row.float()) for row in logits]
        return logits


@DATASETS.register_module(force=True)
class ToyData(Dataset):
    """Random images, the same in every process."""

    def __init__(self, length: int = 12) -> None:
        generator = torch.Generator().manual_seed(7)
        self.images = torch.randn(length, 3, 8, 8, generator=generator)
        self.labels = torch.randint(CLASSES, (length,), generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=self.images[index], labels=self.labels[index])


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    """Sum of |logits|: a number that shows every change of the network."""

    default_prefix = 'toy'

    def process(self, data_batch, data_samples) -> None:
        self.results += [float(sample['logits'].abs().double().sum()) for sample in data_samples]

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(logits=sum(results))


class Recorder(Hook):
    """Calls ``look(runner)`` after every iteration and keeps the losses and what it returned."""

    priority = 'LOWEST'

    def __init__(self, look=None) -> None:
        self.look = look
        self.losses: list[float] = []
        self.seen: list[Any] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append(float(outputs['loss']))
        if self.look is not None:
            self.seen.append(self.look(runner))


def loader(shuffle: bool) -> dict:
    return dict(
        dataset=dict(type='ToyData'),
        batch_size=BATCH,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=shuffle),
        collate_fn=dict(type='default_collate'),
    )


def toy_config(work_dir, epochs: int = 1, hook: Optional[dict] = None, **changes) -> Config:
    """Config of a run; ``hook`` holds the keys of GDRQHook, None leaves the hook out."""
    hooks = [] if hook is None else [dict(type='mmgdrq.GDRQHook', **hook)]
    config = dict(
        model=dict(type='ToyModel'),
        work_dir=str(work_dir),
        train_dataloader=loader(shuffle=True),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=100),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-3),
        ),
        val_dataloader=loader(shuffle=False),
        val_cfg=dict(type='ValLoop'),
        val_evaluator=dict(type='ToyMetric'),
        test_dataloader=loader(shuffle=False),
        test_cfg=dict(type='TestLoop'),
        test_evaluator=dict(type='ToyMetric'),
        custom_hooks=hooks,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        randomness=dict(seed=0),
        default_scope='mmengine',
        log_level='INFO',
        experiment_name=f'toy_{next(_number)}',
    )
    config.update(changes)
    return Config(config)


def toy_runner(work_dir, epochs: int = 1, hook: Optional[dict] = None, look=None, **changes):
    """A runner and the recorder of its losses, as ``runner.recorder``."""
    runner = Runner.from_cfg(toy_config(work_dir, epochs, hook, **changes))
    runner.recorder = Recorder(look)
    runner.register_hook(runner.recorder)
    return runner


def test_only(config: Config) -> Config:
    """What is left of a config to test a checkpoint."""
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'val_dataloader', 'val_cfg'):
        config.pop(key)
    config.pop('val_evaluator')
    return config


test_only.__test__ = False


def log_of(work_dir) -> str:
    """Everything that the runs in a directory have logged."""
    return '\n'.join(path.read_text() for path in sorted(work_dir.glob('**/*.log')))


def thresholds(model: nn.Module) -> dict[str, float]:
    """Name -> activation threshold of every quantized layer."""
    return {
        name: float(module.activation_quantizer.threshold)
        for name, module in model.named_modules()
        if hasattr(module, 'activation_quantizer') and hasattr(module.activation_quantizer, 'threshold')
    }


def error_of(runner) -> MMGDRQError:
    """The error that ends ``runner.train()``."""
    with pytest.raises(MMGDRQError) as caught:
        runner.train()
    return caught.value


def stage_now(runner) -> str:
    return mmgdrq.get_stage(runner.model)


def weights(runner) -> dict:
    return {name: p.detach().clone() for name, p in runner.model.named_parameters()}


def unequal(a: dict, b: dict) -> list:
    return [key for key in a if not torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key]))]


def by_iterations(count: int) -> dict:
    return dict(type='IterBasedTrainLoop', max_iters=count, val_interval=100)
