"""Rows for a detector or segmentor: each one is trained and evaluated by the command line tools.

A row starts from the same float checkpoint and takes the same number of epochs with the same schedule; only the
quantization differs.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rows import Row

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Experiment:
    """A float config and how its rows are trained.

    Attributes:
        config: the float model, relative to the repository.
        metrics: key of the evaluator -> name in the table; values are shown in percent.
        epochs: of every row, after those of the float config.
        lr: highest learning rate of a row.
    """

    config: str
    metrics: dict[str, tuple[str, float]]
    epochs: int = 3
    lr: float = 0.001

    def run(self, row: Row, seed: int, data: Path, work: Path) -> dict[str, Any]:
        """Train and evaluate one row.

        Args:
            row: how to quantize; rows of other libraries are not possible here.
            seed: of the run.
            data: folder of the data set.
            work: folder for checkpoints and logs.

        Returns:
            The metrics on the test split, and the budget.

        Raises:
            RuntimeError: a tool failed, or the row belongs to a library that cannot quantize OpenMMLab models.
        """
        if row.library not in ('mmgdrq', 'float'):
            raise RuntimeError(f'{row.name}: {row.library} cannot quantize an OpenMMLab model')
        start = self._float(data, work)
        folder = work / Path(self.config).stem / f'{row.name}-s{seed}-{self.epochs}-epochs-lr-{self.lr:g}'
        config = self._row_config(row, seed, data, start)
        metrics = train_and_test(config, folder)
        values = {name: round(metrics[key] * scale, 2) for key, (name, scale) in self.metrics.items()}
        return dict(values, budget=self._budget())

    def _float(self, data: Path, work: Path) -> Path:
        folder = work / Path(self.config).stem / 'start'
        if not (folder / 'metrics.json').exists():
            train_and_test(self._config(data), folder)
        return Path((folder / 'last_checkpoint').read_text(encoding='utf-8').strip())

    def _config(self, data: Path) -> Config:
        config = Config.fromfile(ROOT / self.config)
        text = config.pretty_text.replace(config.data_root, f'{data.resolve()}/')
        return Config.fromstring(text, '.py')

    def _row_config(self, row: Row, seed: int, data: Path, start: Path) -> Config:
        config = self._config(data)
        config.load_from = str(start)
        config.randomness = dict(seed=seed)
        config.train_cfg.update(max_epochs=self.epochs, val_interval=self.epochs)
        config.optim_wrapper.optimizer.lr = self.lr
        cosine = dict(type='CosineAnnealingLR', T_max=self.epochs, eta_min=1e-6, end=self.epochs)
        config.param_scheduler = [
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
            dict(cosine, convert_to_iter_based=True),
        ]
        config.default_hooks.checkpoint.interval = self.epochs
        if row.quant is not None:
            _quantize(config, row, self.epochs)
        return config

    def _budget(self) -> str:
        return f'{self.epochs} epochs a row from the float checkpoint, AdamW, learning rate {self.lr:g}'


def _quantize(config: Config, row: Row, epochs: int) -> None:
    stages = dict(reshape=0, quantize=max(round(row.reshape * epochs), 1)) if row.reshape else None
    config.custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)
    hook = dict(type='mmgdrq.GDRQHook', stages=stages, scale_clip=row.scale_clip)
    config.custom_hooks = [dict(hook, distill=dict()) if row.distill else hook]
    config.model = dict(config.model, type='mmgdrq.Quantized', base_type=config.model.type, quant=row.quant)


def train_and_test(config: Config, folder: Path) -> dict[str, float]:
    """Train and evaluate in ``folder``; what is done already is not done again."""
    folder.mkdir(parents=True, exist_ok=True)
    result, file = folder / 'metrics.json', folder / 'config.py'
    if not result.exists():
        config.dump(str(file))
        _tool(folder, 'train.py', str(file), '--work-dir', str(folder))
        checkpoint = (folder / 'last_checkpoint').read_text(encoding='utf-8').strip()
        _tool(folder, 'test.py', str(file), checkpoint, '--work-dir', str(folder / 'test'), '--metrics', str(result))
    return json.loads(result.read_text(encoding='utf-8'))


def _tool(folder: Path, tool: str, *arguments: str) -> None:
    log = folder / f'{tool}.log'
    with log.open('w', encoding='utf-8') as out:
        command = [sys.executable, str(ROOT / 'tools' / tool), *arguments]
        status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=os.environ).returncode
    if status:
        raise RuntimeError(f'{tool} {arguments[0]} ended with status {status}; see {log}')
