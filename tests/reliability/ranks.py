"""What a config imports so that mmengine's launchers start ranks on a machine without a GPU."""

import json

import torch
import torch.nn.functional as F
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS
from torch import nn

import tests.helpers.toy  # noqa: F401 (registers its data set and metric)

if not torch.cuda.is_available():
    torch.cuda.set_device = lambda device: None  # mmengine calls it for every rank


@MODELS.register_module(force=True)
class PlainModel(BaseModel):
    """Convolutions without BN, which would differ between the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, inputs, labels=None, mode='tensor'):
        x = F.relu(self.conv2(F.relu(self.conv1(inputs))))
        logits = self.head(x.mean((2, 3)))
        if mode == 'loss':
            return dict(loss=F.cross_entropy(logits, labels))
        return [dict(logits=row) for row in logits] if mode == 'predict' else logits


@HOOKS.register_module(force=True)
class RankJournal(Hook):
    """Appends the losses of every rank to a file of its own, ``path.RANK``."""

    def __init__(self, path: str) -> None:
        self.path = path

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        with open(f'{self.path}.{get_rank()}', 'a') as stream:
            stream.write(json.dumps(float(outputs['loss'])) + '\n')
