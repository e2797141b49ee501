"""Checkpoints that a kill or a full disk cannot destroy while they are saved."""

from typing import Optional

from mmengine.fileio import FileClient
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook

from ...registry import HOOKS
from ..running.whole_files import BACKEND, WholeFilesBackend


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
        backend: Optional[dict] = self.backend_args  # type: ignore[has-type]  # of mmengine's class
        if backend is None and self.file_client_args is None and not FileClient.parse_uri_prefix(folder):
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
