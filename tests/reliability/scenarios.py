"""Faults at random moments of training and of writing a deployed model, and what has to hold afterwards."""

import contextlib
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Optional

import torch
from torch import nn

import mmgdrq
from mmgdrq.deploy import load_folded, save_folded

from .faults import (
    EPOCHS,
    ITERS,
    Child,
    check_folder,
    filled,
    losses_of,
    padded_config,
    partials,
    preload,
    train,
)

SIGNALS = {'SIGTERM': signal.SIGTERM, 'SIGKILL': signal.SIGKILL}
LIMITED, MOUNTED = 'file size limit', 'full file system'
KINDS = (*SIGNALS, LIMITED, MOUNTED)
"""Of faults. The third lets a write fail in the middle of a file by RLIMIT_FSIZE, the fourth by a disk without room."""

FULL = 28
WIDTH = 640


class Training:
    """A training that is struck again and again, against one that is not.

    Args:
        folder: for both.
        seed: of the moments.
        disk: folder for the checkpoints; for ``MOUNTED`` a file system of its own.
        checkpoint: further arguments of CheckpointHook.

    Attributes:
        struck: how many faults of a kind there were at a moment, ``(kind, moment)``: ``'saving'`` where the hidden
            file of an unfinished write was left, ``'training'`` otherwise.
        runs: trainings that were struck to their end.
    """

    def __init__(self, folder: Path, seed: int = 0, disk: Optional[Path] = None, **checkpoint) -> None:
        preload()
        self.folder, self.disk, self.checkpoint = folder, disk or folder, checkpoint
        self.random = random.Random(seed)
        self.struck: Counter = Counter()
        self.runs = 0
        whole = self.child('whole')
        assert whole.wait_for(self._begun('whole').exists)
        begin = time.monotonic()
        assert whole.wait_for_partial(self.work_dir('whole'))
        first = time.monotonic()
        assert whole.wait_for(lambda: not partials(self.work_dir('whole')))
        self.writing = time.monotonic() - first
        assert whole.wait() == 0
        self.length = time.monotonic() - begin
        self.losses = dict(losses_of(folder / 'whole.log'))
        assert len(self.losses) == EPOCHS * ITERS
        shutil.rmtree(self.work_dir('whole'))

    def child(self, name: str, **limits) -> Child:
        """Start or resume the training of this name."""
        config = padded_config(self.work_dir(name), self.folder / f'{name}.log', **self.checkpoint)
        return Child(lambda: train(config), **limits)

    def work_dir(self, name: str) -> Path:
        """Where the training of this name saves."""
        return self.disk / name

    def strike(self, kind: str, faults: int, moment: str = 'saving', limit: float = float('inf')) -> None:
        """Train until there were so many faults of a kind at a moment; several trainings if one is too short.

        After ``limit`` seconds it ends with fewer; ``struck`` counts them.
        """
        goal, end = self.struck[kind, moment] + faults, time.monotonic() + limit

        def wanted() -> bool:
            return self.struck[kind, moment] < goal and time.monotonic() < end

        while wanted():
            self.runs += 1
            name = f'{kind}_{self.runs}'.replace(' ', '_')
            while wanted() and not self._end(name).exists():
                self._strike_once(name, kind, moment)
            assert self._end(name).exists() or self.child(name).wait() == 0
            self._compare(name)
            shutil.rmtree(self.work_dir(name))

    def _strike_once(self, name: str, kind: str, moment: str) -> None:
        before = partials(self.work_dir(name))
        struck = self._kill(name, SIGNALS[kind], moment) if kind in SIGNALS else self._fill(name, kind)
        check_folder(self.work_dir(name))
        if struck:
            # a write that found no room has removed its hidden file
            half = kind not in SIGNALS or partials(self.work_dir(name)) - before
            self.struck[kind, 'saving' if half else 'training'] += 1
        if kind not in SIGNALS and self.random.random() < 0.7:  # room for a while, so that the training gets on
            self._kill(name, signal.SIGKILL, 'training')
            check_folder(self.work_dir(name))

    def _kill(self, name: str, number: int, moment: str) -> bool:
        self._begun(name).unlink(missing_ok=True)
        child = self.child(name)
        child.wait_for(self._begun(name).exists)
        if moment == 'saving' and child.wait_for_partial(self.work_dir(name), self.random.randint(1, 3)):
            return child.end(number, self.random.uniform(0, 0.7 * self.writing))
        return child.end(number, self.random.uniform(0, 0.6) * self.length)

    def _fill(self, name: str, kind: str) -> bool:
        # the limit lies inside a checkpoint; a training that has none yet fails in its first one
        room = self.random.randrange(1 << 16, 4 << 20)
        limits = dict(file_size=room) if kind == LIMITED else {}
        with filled(self.disk, room) if kind == MOUNTED else contextlib.nullcontext():
            status = self.child(name, **limits).wait()
        # a training that was struck after its last checkpoint has none to write
        assert status == FULL or (self.work_dir(name) / f'epoch_{EPOCHS}.pth').exists(), status
        return status == FULL

    def _begun(self, name: str) -> Path:
        return self.folder / f'{name}.log.begun'

    def _end(self, name: str) -> Path:
        return self.folder / f'{name}.log.end'

    def _compare(self, name: str) -> None:
        rows = losses_of(self.folder / f'{name}.log')
        assert {iteration for iteration, _ in rows} == set(self.losses)
        for iteration, loss in rows:
            assert loss == self.losses[iteration], f'iteration {iteration} after a resume'
        whole, resumed = (torch.load(self._end(run)) for run in ('whole', name))
        assert whole.keys() == resumed.keys()
        for key, value in whole.items():
            assert torch.equal(resumed[key], value), key


def folded_net(seed: int) -> nn.Module:
    """A folded network of some MB."""
    torch.manual_seed(seed)
    return mmgdrq.fold(_trained())


def _quantized() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, WIDTH), nn.Linear(WIDTH, WIDTH))
    return mmgdrq.quantize(net, weight=dict(bits=8))


def _trained() -> nn.Module:
    net = _quantized().train()
    with torch.no_grad():
        net(torch.rand(2, 3, 8, 8))
    return net


class Packing:
    """A deployed model that is written again and again while it is struck.

    Attributes:
        struck: how many faults of a kind there were, ``(kind, moment)``: ``'packing'`` where the hidden directory of
            an unfinished write was left or there was no room for it, ``'between'`` two writes otherwise.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        torch.set_num_threads(1)
        self.out = folder / 'model'
        self.random = random.Random(seed)
        self.struck: Counter = Counter()
        self.models = [folded_net(1), folded_net(2)]
        begin = time.monotonic()
        self.write(0)
        self.length = time.monotonic() - begin

    def write(self, index: int) -> None:
        """Write one of the two models."""
        save_folded(self.models[index], self.out, f'number = {index}\n')

    def _write_in_turn(self) -> None:
        for number in range(1000):
            self.write(number % 2)

    def strike(self, kind: str, faults: int, limit: float = float('inf')) -> None:
        """Write until there were so many faults of a kind in the middle of a write; a whole model is there after each.

        After ``limit`` seconds it ends with fewer.
        """
        goal, end = self.struck[kind, 'packing'] + faults, time.monotonic() + limit
        while self.struck[kind, 'packing'] < goal and time.monotonic() < end:
            before = partials(self.out.parent)
            struck = self._kill(SIGNALS[kind]) if kind in SIGNALS else self._fill(kind)
            self.check()
            half = kind not in SIGNALS or partials(self.out.parent) - before
            self.struck[kind, 'packing' if half else 'between'] += struck

    def _kill(self, number: int) -> bool:
        return Child(self._write_in_turn).end(number, self.random.uniform(0, 4) * self.length)

    def _fill(self, kind: str) -> bool:
        room = self.random.randrange(1000, (self.out / 'weights.safetensors').stat().st_size)
        limits = dict(file_size=room) if kind == LIMITED else {}
        with filled(self.out.parent, room) if kind == MOUNTED else contextlib.nullcontext():
            assert Child(self._write_in_turn, **limits).wait() == FULL
        return True

    def check(self) -> None:
        """Assert that one of the two models is there, whole."""
        others = {path.name for path in self.out.parent.iterdir()} - {self.out.name}
        assert others <= partials(self.out.parent), others
        index = int((self.out / 'config.py').read_text().split()[-1])
        loaded = load_folded(_quantized(), self.out).state_dict()
        for key, value in self.models[index].state_dict().items():
            assert torch.equal(loaded[key], value), key
