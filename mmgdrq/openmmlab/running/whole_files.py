"""Write and remove the files of a training so that a whole one is always there."""

import os
from pathlib import Path
from typing import Union

from mmengine.fileio import LocalBackend, register_backend

from ...files import write_file

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
