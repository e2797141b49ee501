"""Checkpoints that a kill or a full disk cannot destroy while they are saved."""

import os
from pathlib import Path
from typing import Union

from mmengine.fileio import FileClient, LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook

from ..files import write_file
from ..registry import HOOKS

BACKEND = 'mmgdrq_whole'


class WholeFilesBackend(LocalBackend):
    """Local files that appear when they are complete, and are removed when told to a second time.

    mmengine removes the outdated checkpoint before it writes the next one. Here :meth:`remove` only takes note,
    and :meth:`settle` removes, after the next one is on the disk.
    """

    def __init__(self) -> None:
        self.outdated: dict[str, int] = {}

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write ``obj`` under a hidden name, flush it to the disk, and rename it."""
        write_file(filepath, obj)

    def remove(self, filepath: Union[str, Path]) -> None:
        """Note that a file is outdated."""
        self.outdated[str(filepath)] = os.stat(filepath).st_ino

    def settle(self) -> None:
        """Remove what is outdated and was not written again since."""
        for path, number in self.outdated.items():
            if os.path.isfile(path) and os.stat(path).st_ino == number:
                os.remove(path)
        self.outdated.clear()


register_backend(BACKEND, WholeFilesBackend)


@HOOKS.register_module(name='CheckpointHook')
class SafeCheckpointHook(MMEngineCheckpointHook):
    """mmengine's CheckpointHook, with the same arguments, for local files that are always whole.

    mmengine writes straight to the final name, and removes the outdated checkpoint (``max_keep_ckpts``,
    ``save_best``) first: a kill or a full disk at that moment leaves half a file, or none at all. With this hook
    a checkpoint gets its name when it is complete, and the outdated ones go afterwards. Other file systems than
    the local one, ``file_client_args`` and the strategies of FlexibleRunner save as they do without it.
    """

    def before_train(self, runner) -> None:
        """Choose the backend that writes whole files."""
        self._use_whole_files(self.out_dir or runner.work_dir)
        super().before_train(runner)

    def _use_whole_files(self, folder: str) -> None:
        if self.backend_args is None and self.file_client_args is None and not FileClient.parse_uri_prefix(folder):
            self.backend_args = dict(backend=BACKEND)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._settle()

    def _save_best_checkpoint(self, runner, metrics) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self._settle()

    def _settle(self) -> None:
        if isinstance(self.file_backend, WholeFilesBackend):
            self.file_backend.settle()
