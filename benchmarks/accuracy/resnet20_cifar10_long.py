"""As resnet20_cifar10.py, with six times as many steps a row."""

from pathlib import Path
from typing import Any

import resnet20_cifar10
from rows import Row

TASK = 'resnet20_cifar10_long'
METRICS = resnet20_cifar10.METRICS
BUDGET = resnet20_cifar10.Budget(steps=2400, lr=0.03)


def run(row: Row, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """Train and evaluate one row, see :func:`resnet20_cifar10.run`."""
    return resnet20_cifar10.run(row, seed, data, work, BUDGET)
