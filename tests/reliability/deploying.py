"""Faults at random moments of the whole tools/deploy.py: fold, verify, pack, export, compare, report."""

import contextlib
import random
import time
from collections import Counter
from pathlib import Path
from typing import Optional

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmgdrq.openmmlab.commands import deploy
from tests.helpers.toy import toy_config

from .faults import Child, filled, partials, preload
from .scenarios import FULL, LIMITED, MOUNTED, SIGNALS

ENGINE = 'onnxruntime'


@MODELS.register_module(force=True)
class ToyClassifier(BaseModel):
    """Convolutions with BN and a head, at the seams of a classifier of mmpretrain."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, 4)

    def extract_feat(self, inputs):
        return self.body(self.stem(inputs)).mean((2, 3))

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = self.head(self.extract_feat(inputs))
        if mode == 'loss':
            return dict(loss=F.cross_entropy(logits, labels))
        return [dict(logits=row) for row in logits] if mode == 'predict' else logits


def config_of(folder: Path, name: str, seed: int) -> Config:
    """Config of a training; two seeds give two models."""
    hook = dict(weight=dict(bits=4), activation=dict(bits=4))
    changes = dict(model=dict(type='ToyClassifier'), randomness=dict(seed=seed), log_level='ERROR')
    return toy_config(folder / name, 1, hook, experiment_name=name, **changes)


class Deploying:
    """A tool that deploys one of two checkpoints over the other's model, struck again and again.

    Args:
        folder: for configs, checkpoints and the models of undisturbed runs.
        seed: of the moments.
        disk: folder for the model that is struck; for ``MOUNTED`` a file system of its own.

    Attributes:
        struck: how many faults of a kind there were at a moment, ``(kind, moment)``: ``'folding'`` before anything
            is written or when the new model has its name already, ``'packing'``, or ``'exporting'`` where graphs were
            being written or compared.
    """

    def __init__(self, folder: Path, seed: int = 0, disk: Optional[Path] = None) -> None:
        preload()
        self.folder, self.random = folder, random.Random(seed)
        self.struck: Counter = Counter()
        self.turn = 0
        self.wanted = []
        for number in (0, 1):
            config = config_of(folder, f'run_{number}', number)
            config.dump(folder / f'config_{number}.py')
            runner = Runner.from_cfg(config)
            runner.train()
        for number in (0, 1):
            begin = time.monotonic()
            child = self.child(number, folder / f'wanted_{number}')
            assert child.wait_for(lambda: bool(partials(folder)))
            self.folding = time.monotonic() - begin
            assert child.wait() == 0
            self.exporting = time.monotonic() - begin - self.folding
            self.wanted.append(content_of(folder / f'wanted_{number}'))
        assert self.wanted[0] != self.wanted[1]
        self.out = (disk or folder) / 'model'
        assert self.child(0, self.out).wait() == 0
        self.check()

    def child(self, number: int, out: Path, **limits) -> Child:
        """Start the tool for a checkpoint."""
        arguments = [self.folder / f'config_{number}.py', self.folder / f'run_{number}/epoch_1.pth', '--out', out]
        options = ['--rounds', '0', '--batches', '1', '--work-dir', self.folder / 'tested', '--export', ENGINE]
        return Child(lambda: run_tool([*arguments, *options]), **limits)

    def strike(self, kind: str, faults: int, moment: str, limit: float = float('inf')) -> None:
        """Deploy until there were so many faults of a kind at a moment; after ``limit`` seconds with fewer."""
        goal, end = self.struck[kind, moment] + faults, time.monotonic() + limit
        while self.struck[kind, moment] < goal and time.monotonic() < end:
            self.turn = 1 - self.turn
            before = partials(self.out.parent)
            if kind in SIGNALS:
                struck = self._kill(SIGNALS[kind], moment)
                left = partials(self.out.parent) - before
                graphs = any((self.out.parent / name / ENGINE).is_dir() for name in left)
                found = 'exporting' if graphs else 'packing' if left else 'folding'
            else:
                struck, found = self._fill(kind, moment)
            self.check()
            self.struck[kind, found] += struck

    def _kill(self, number: int, moment: str) -> bool:
        child = self.child(self.turn, self.out)
        if moment == 'folding':
            return child.end(number, self.random.uniform(0, self.folding))
        hidden = self.out.with_name
        child.wait_for(lambda: any((hidden(n) / ENGINE).is_dir() for n in self._hidden(child)))
        return child.end(number, self.random.uniform(0, self.exporting))

    def _hidden(self, child: Child) -> set[str]:
        return {name for name in partials(self.out.parent) if name.endswith(f'-{child.process}')}

    def _fill(self, kind: str, moment: str) -> tuple[bool, str]:
        # the weights are the smaller file: more room than they take lets the graph fail
        weights = (self.out / 'weights.safetensors').stat().st_size
        graph = max(path.stat().st_size for path in (self.out / ENGINE).iterdir())
        low, high = (weights + 1, graph) if moment == 'exporting' else (1, weights)
        room = self.random.randrange(low, high)
        limits = dict(file_size=room) if kind == LIMITED else {}
        with filled(self.out.parent, room) if kind == MOUNTED else contextlib.nullcontext():
            status = self.child(self.turn, self.out, **limits).wait()
        assert status == FULL, status
        return True, moment

    def check(self) -> None:
        """Assert that one of the two models is there, every byte of it."""
        others = {path.name for path in self.out.parent.iterdir() if path.name.startswith('.')}
        assert others <= partials(self.out.parent), others
        assert content_of(self.out) in self.wanted


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of a deployed model; the report is written after it, and may be missing or have its hidden name."""
    files = [path for path in folder.rglob('*') if path.is_file() and 'report.json' not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run_tool(arguments: list) -> None:
    """tools/deploy.py in this process."""
    torch.manual_seed(0)
    Runner._log_env = lambda *_: None  # it asks compilers for their versions, for seconds
    deploy.main([*map(str, arguments)])
