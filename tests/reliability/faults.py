"""Child processes that train and write, and are ended at random moments."""

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

import torch
from mmengine.runner import Runner
from torch import nn

from mmgdrq.openmmlab.commands.checkpoints import damage_of, resume_latest, save_whole_checkpoints
from mmgdrq.openmmlab.commands.run import FULL
from tests.helpers.toy import Recorder, toy_config

EPOCHS = 6
ITERS = 3  # an epoch
PADDING = 1 << 20  # elements: saving takes longer than training, so that most faults strike while it saves


def preload() -> None:
    """Import what a runner imports late, so that its forked children need not: more than a second for each."""
    for name in ('matplotlib.pyplot', 'mmcv.ops', 'torch._dynamo'):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def padded_config(work_dir: Path, log: Path, **checkpoint):
    """Config of a toy training whose checkpoints are several MB; every loss goes to ``log``."""
    config = toy_config(work_dir, EPOCHS, dict(stages=dict(reshape=1, quantize=2)))
    config.default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, **checkpoint))
    config.log_level = 'ERROR'
    config.loss_log = str(log)
    return config


class Journal(Recorder):
    """Appends ``[iteration, loss]`` to a file after every iteration."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def before_train(self, runner) -> None:
        Path(f'{self.path}.begun').touch()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        with open(self.path, 'a') as stream:
            stream.write(json.dumps([runner.iter, float(outputs['loss'])]) + '\n')


def train(config) -> None:
    """What ``tools/train.py --resume`` does, on the toy model with padding."""
    resume_latest(config)
    save_whole_checkpoints(config)
    journal = config.pop('loss_log')
    Runner._log_env = lambda *_: None  # it asks compilers for their versions, for seconds
    runner = Runner.from_cfg(config)
    runner.model.padding = nn.Parameter(torch.zeros(PADDING), requires_grad=False)
    runner.register_hook(Journal(journal))
    runner.train()
    torch.save(runner.model.state_dict(), f'{journal}.end.part')
    os.replace(f'{journal}.end.part', f'{journal}.end')


class Child:
    """A forked process that does ``work``; silent, on one thread.

    Args:
        work: function to run.
        file_size: largest file that it may write, in bytes; writing more raises OSError as on a full disk.
    """

    def __init__(self, work: Callable[[], None], file_size: Optional[int] = None) -> None:
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            self._run(work, file_size)

    def end(self, number: int, after: float) -> bool:
        """Send a signal after some seconds; whether it struck before the work was done."""
        limit = time.monotonic() + after
        while time.monotonic() < limit:
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                return self._struck(status, number)
            time.sleep(0.001)
        os.kill(self.process, number)
        return self._struck(os.waitpid(self.process, 0)[1], number)

    def wait_for(self, happened: Callable[[], bool]) -> bool:
        """Wait until something has happened; False if the work ended before."""
        while not happened():
            if os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return False
            time.sleep(0.0002)
        return True

    def wait_for_partial(self, folder: Path, number: int = 1) -> bool:
        """Wait until the ``number``-th hidden file of an unfinished write of this process is there."""
        seen: set[str] = set()

        def happened() -> bool:
            seen.update(name for name in partials(folder) if name.endswith(f'-{self.process}'))
            return len(seen) >= number

        return self.wait_for(happened)

    def wait(self) -> int:
        """The exit status."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    @staticmethod
    def _struck(status: int, number: int) -> bool:
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -number), f'the process ended with {code} by itself'
        return code == -number

    @staticmethod
    def _run(work, file_size) -> None:
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            torch.set_num_threads(1)
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
            work()
            status = 0
        except OSError as error:
            status = 28 if error.errno in FULL else 1
        finally:
            os._exit(status)


def losses_of(log: Path) -> list[tuple[int, float]]:
    """All losses in the order in which they were computed; a line that was cut off by a kill is left out."""
    rows = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            rows.append(tuple(json.loads(line)))
        except ValueError:
            continue
    return rows


def partials(folder: Path) -> set[str]:
    """Names of the hidden files and directories of unfinished writes."""
    if not folder.is_dir():
        return set()
    return {name for name in os.listdir(folder) if name.startswith('.') and '.partial-' in name}


def check_folder(folder: Path) -> None:
    """Assert that every checkpoint with a final name is whole."""
    for path in folder.glob('*.pth'):
        assert not damage_of(str(path)), path
        content = torch.load(path)
        assert content['state_dict']['padding'].numel() == PADDING, path


@contextlib.contextmanager
def small_file_system(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system in memory of a few MB, mounted on a new folder.

    Raises:
        PermissionError: this process may not mount.
    """
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        problem = done.stderr.strip() if done.returncode else ''
    except FileNotFoundError as error:
        problem = str(error)
    if problem:
        raise PermissionError(f'no file system can be mounted: {problem}')
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


@contextlib.contextmanager
def filled(folder: Path, room: int) -> Iterator[None]:
    """Leave ``room`` bytes of the file system of a folder, for a while."""
    filler = folder / 'filler'
    state = os.statvfs(folder)
    filler.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - room)))
    try:
        yield
    finally:
        filler.unlink()
