"""ResNet-20 on CIFAR-10: from its published float weights, every row trains for the same number of steps."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from cifar import WEIGHTS, augment, load_split, normalize, resnet20
from rows import Row
from torch import Tensor, nn
from tqdm import tqdm

import mmgdrq
from mmgdrq.training.distillation import Distillation, Distiller, make_teacher

TASK = 'resnet20_cifar10'
METRICS = ('top-1',)
DISTILLATION = Distillation(weight=0.9, task_weight=0.1, temperature=4.0)


@dataclass(frozen=True)
class Budget:
    """Length of training; the learning rate falls to zero along a cosine.

    Attributes:
        steps: steps of every row.
        batch: images a step.
        lr: highest learning rate of SGD with momentum 0.9 and weight decay 1e-4.
    """

    steps: int = 400
    batch: int = 128
    lr: float = 0.01

    def __str__(self) -> str:
        return (
            f'{self.steps} steps a row from the published float weights, of {self.batch} images, '
            f'SGD, learning rate {self.lr:g}'
        )


def run(row: Row, seed: int, data: Path, work: Path, budget: Budget = Budget()) -> dict[str, Any]:
    """Train and evaluate one row.

    Args:
        row: how to quantize.
        seed: of the order and augmentation of the images.
        data: folder of the images and the float weights.
        work: not needed here.
        budget: how long to train.

    Returns:
        ``top-1`` on the test split in percent, the last training loss, and the budget.
    """
    train, test = (load_split(data, split) for split in ('train', 'test'))
    model = resnet20(data / WEIGHTS)
    teacher = make_teacher(model) if row.distill else None
    _quantize(model, row)
    distiller = Distiller(model, teacher, DISTILLATION) if teacher else None
    trainer = Trainer(train, budget, seed)
    before_step, projection = _schedule(model, row, budget)
    loss = trainer.train(model, budget.steps, before_step, projection, distiller, name=f'{row.name} s{seed}')
    return {'top-1': accuracy(model, test), 'loss': loss, 'budget': str(budget)}


class Trainer:
    """Trains models on the same images in the same order."""

    def __init__(self, train: tuple[Tensor, Tensor], budget: Budget, seed: int) -> None:
        self.images, self.labels = train
        self.budget, self.seed = budget, seed

    def train(
        self,
        model: nn.Module,
        steps: int,
        before_step: Optional[Callable[[int], None]] = None,
        projection: Optional[mmgdrq.ScaleClip] = None,
        distiller: Optional[Distiller] = None,
        name: str = '',
    ) -> float:
        """Train for ``steps`` steps; returns the mean loss of the last tenth."""
        torch.manual_seed(self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.SGD(_groups(model), lr=self.budget.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        if projection is not None:
            projection.attach(optimizer)
        model.train()
        losses = []
        for step in tqdm(range(steps), desc=name, file=sys.stderr, mininterval=10):
            if before_step is not None:
                before_step(step)
            chosen = torch.randint(len(self.images), (self.budget.batch,), generator=generator)
            images = augment(normalize(self.images[chosen]), generator)
            loss = F.cross_entropy(model(images), self.labels[chosen])
            if distiller is not None:
                loss = distiller.total(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        return torch.stack(losses[-max(steps // 10, 1) :]).mean().item()


@torch.no_grad()
def accuracy(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    hits = [model(normalize(x)).argmax(1) == y for x, y in zip(test[0].split(500), test[1].split(500))]
    return 100 * torch.cat(hits).float().mean().item()


def _quantize(model: nn.Module, row: Row) -> nn.Module:
    if row.library == 'brevitas':
        from peers import quantize_with_brevitas

        return quantize_with_brevitas(model, weight_bits=2, activation_bits=4)
    return model if row.quant is None else mmgdrq.quantize(model, **row.quant)


def _schedule(model: nn.Module, row: Row, budget: Budget):
    """What happens before each step, and the projection after it."""
    if row.quant is None:
        return None, None
    reshape = round(row.reshape * budget.steps)
    if reshape:
        mmgdrq.set_stage(model, 'reshape')

    def before_step(step: int) -> None:
        if reshape and step == reshape:
            mmgdrq.set_stage(model, 'quantize')

    return before_step, mmgdrq.ScaleClip(model) if row.scale_clip else None


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for the weights; none for BN, biases and ranges."""
    named = list(model.named_parameters())
    decayed = [p for name, p in named if name.endswith('weight') and p.dim() > 1]
    others = [p for p in model.parameters() if not any(p is d for d in decayed)]
    return [dict(params=decayed, weight_decay=1e-4), dict(params=others, weight_decay=0.0)]
