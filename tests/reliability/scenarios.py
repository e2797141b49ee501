"""Faults at random moments of training and folding, and what has to hold afterwards."""

import random
import shutil
import signal
import time
from pathlib import Path

import torch
from torch import nn

import mmgdrq
from mmgdrq.deploy import load_folded, save_folded

from .faults import EPOCHS, ITERS, Child, check_folder, losses_of, padded_config, train

SIGNALS = {'SIGTERM': signal.SIGTERM, 'SIGKILL': signal.SIGKILL}
FULL = 28
WIDTH = 640


class Training:
    """A training that is struck again and again, against one that is not.

    Args:
        folder: for both.
        seed: of the moments.
        checkpoint: further arguments of CheckpointHook.
    """

    def __init__(self, folder: Path, seed: int = 0, **checkpoint) -> None:
        self.folder, self.checkpoint = folder, checkpoint
        self.random = random.Random(seed)
        self.struck = self.while_saving = self.runs = 0
        whole = self.child('whole')
        assert whole.wait_for(self._begun('whole'))
        begin = time.monotonic()
        assert whole.wait() == 0
        self.length = time.monotonic() - begin
        self.losses = dict(losses_of(folder / 'whole.log'))
        assert len(self.losses) == EPOCHS * ITERS

    def child(self, name: str, **limits) -> Child:
        """Start or resume the training of this name."""
        config = padded_config(self.folder / name, self.folder / f'{name}.log', **self.checkpoint)
        return Child(lambda: train(config), **limits)

    def strike(self, kind: str, faults: int, limit: float = float('inf')) -> None:
        """Train until there were so many faults of a kind; several trainings if one is too short.

        After ``limit`` seconds it ends with fewer; ``struck`` counts them.
        """
        goal, end = self.struck + faults, time.monotonic() + limit
        while self.struck < goal and time.monotonic() < end:
            self.runs += 1
            name = f'{kind}_{self.runs}'
            while self.struck < goal and time.monotonic() < end and not self._ended(name):
                struck = self._fill(name) if kind == 'full disk' else self._kill(name, SIGNALS[kind])
                self.struck += struck
                self.while_saving += bool(check_folder(self.folder / name)) and struck
            assert self._ended(name) or self.child(name).wait() == 0
            self._compare(name)
            shutil.rmtree(self.folder / name)

    def _kill(self, name: str, number: int) -> bool:
        self._begun(name).unlink(missing_ok=True)
        child = self.child(name)
        child.wait_for(self._begun(name))
        return child.end(number, self.random.uniform(0, 0.6) * self.length)

    def _fill(self, name: str) -> bool:
        # the limit lies inside a checkpoint; a training that has none yet fails in its first one
        status = self.child(name, file_size=self.random.randrange(1 << 16, 4 << 20)).wait()
        assert status == FULL
        if self.random.random() < 0.7:  # room again for a while, so that the training gets on
            self._kill(name, signal.SIGKILL)
        return True

    def _begun(self, name: str) -> Path:
        return self.folder / f'{name}.log.begun'

    def _ended(self, name: str) -> bool:
        return (self.folder / name / 'end.pt').exists()

    def _compare(self, name: str) -> None:
        rows = losses_of(self.folder / f'{name}.log')
        assert {iteration for iteration, _ in rows} == set(self.losses)
        for iteration, loss in rows:
            assert loss == self.losses[iteration], f'iteration {iteration} after a resume'
        whole, resumed = (torch.load(self.folder / run / 'end.pt') for run in ('whole', name))
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


class Folding:
    """A deployed model that is written again and again while it is struck."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        torch.set_num_threads(1)
        self.out = folder / 'model'
        self.random = random.Random(seed)
        self.struck = self.while_writing = 0
        self.models = [folded_net(1), folded_net(2)]
        begin = time.monotonic()
        self._write(0)
        self.length = time.monotonic() - begin

    def _write(self, index: int) -> None:
        save_folded(self.models[index], self.out, f'number = {index}\n')

    def _write_in_turn(self) -> None:
        for number in range(1000):
            self._write(number % 2)

    def strike(self, kind: str, faults: int) -> None:
        """Write until there were so many faults of a kind; a whole model is there after each."""
        for _ in range(faults):
            if kind == 'full disk':
                limit = self.random.randrange(1000, (self.out / 'weights.safetensors').stat().st_size)
                assert Child(self._write_in_turn, file_size=limit).wait() != 0
                self.struck += 1
            else:
                self.struck += Child(self._write_in_turn).end(SIGNALS[kind], self.random.uniform(0, 4) * self.length)
            self.check()

    def check(self) -> None:
        """Assert that one of the two models is there, whole."""
        others = [path for path in self.out.parent.iterdir() if path != self.out]
        assert all(path.name.startswith('.model.partial-') for path in others), others
        self.while_writing += bool(others)
        index = int((self.out / 'config.py').read_text().split()[-1])
        loaded = load_folded(_quantized(), self.out).state_dict()
        for key, value in self.models[index].state_dict().items():
            assert torch.equal(loaded[key], value), key
