"""As classification.py, with six times as many steps a row."""

from pathlib import Path
from typing import Any

import classification
from rows import Row

TASK = 'classification_long'
METRICS = classification.METRICS
BUDGET = classification.Budget(steps=2400, lr=0.03)


def run(row: Row, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """Train and evaluate one row, see :func:`classification.run`."""
    return classification.run(row, seed, data, work, BUDGET)
