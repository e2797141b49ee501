"""Results on disk: one json file for each finished run. A run that was cut off leaves none."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / 'results'


def path_of(task: str, row: str, seed: int, root: Path = RESULTS) -> Path:
    """File of one run."""
    return root / task / f'{row}-s{seed}.json'


def save(task: str, row: str, seed: int, result: dict[str, Any], root: Path = RESULTS) -> None:
    """Write a finished run, with the day and the machine."""
    path = path_of(task, row, seed, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = dict(task=task, row=row, seed=seed, **result, date=str(datetime.date.today()), machine=machine())
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
    temporary.replace(path)


def load(task: str, root: Path = RESULTS) -> Iterator[dict[str, Any]]:
    """All finished runs of a task."""
    for path in sorted((root / task).glob('*.json')):
        yield json.loads(path.read_text(encoding='utf-8'))


def machine() -> str:
    """Processor, number of cores and GPU, and the version of torch."""
    name, info = platform.processor() or platform.machine(), Path('/proc/cpuinfo')
    lines = info.read_text(encoding='utf-8').splitlines() if info.exists() else []
    name = next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), name)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    return f'{os.cpu_count()} cores of {name}, {gpu}, torch {torch.__version__}'


def commit() -> str:
    """The commit that is checked out, as far as git knows one; ``-dirty`` where tracked files were changed."""
    command = ['git', '-C', str(RESULTS.parent), 'describe', '--always', '--dirty', '--exclude=*']
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or 'unknown'
