"""Files and directories that get their final name when they are complete, and not before.

Whatever ends the process (a kill, a full disk, a power failure), the final name holds the old content or the
new one, whole. What was being written then lies beside it under a hidden name, until the next one is written.
"""

import ctypes
import errno
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Union

PathLike = Union[str, Path]

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux
_HERE = -100  # AT_FDCWD
_ESCAPED = re.compile(rb'\\([0-7]{3})')
"""How the kernel writes white space in the names of mount points."""


def write_file(path: PathLike, content: Union[bytes, str]) -> None:
    """Write a file, in place of an earlier one; text in UTF-8. Where a link leads to a file, that is replaced.

    Raises:
        OSError: it cannot be written, such as on a full disk; an earlier file is still there then.
    """
    path = real_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    partial = partial_name(path)
    try:
        with open(partial, 'wb') as stream:
            stream.write(content.encode('utf-8') if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def replace_directory(new: Path, final: Path) -> None:
    """Give the directory ``new`` the name ``final`` of the same file system; an earlier one there is removed.

    Where the system can exchange two names at once, there is no moment without a whole ``final``. Elsewhere the
    earlier one has a hidden name beside it for a moment.
    """
    for file in [*filter(Path.is_file, new.rglob('*')), new]:
        flush(file)
    if not final.exists():
        os.rename(new, final)
    elif _exchange(new, final):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = new.with_name(f'{new.name}.old')
        os.rename(final, old)
        os.rename(new, final)
        shutil.rmtree(old, ignore_errors=True)
    flush(final.parent)


def real_path(path: PathLike) -> Path:
    """Where something with this name lies, which may be a link or end with ``..``; it need not exist."""
    return Path(os.path.realpath(path))


def cannot_be_replaced(path: PathLike) -> str:
    """Why a directory cannot be given another in its place; empty where it can, or does not exist."""
    path = real_path(path)
    if path in (here := real_path('.'), *here.parents):
        return 'is the current folder, or holds it'
    if os.path.ismount(path) or str(path) in _mount_points():
        return 'is a mount point'
    return ''


def _mount_points() -> list[str]:
    """All of them on Linux, those of folders of the same file system too; none elsewhere."""
    try:
        lines = Path('/proc/self/mountinfo').read_bytes().splitlines()
    except OSError:
        return []
    return [os.fsdecode(_ESCAPED.sub(lambda code: bytes([int(code[1], 8)]), line.split()[4])) for line in lines]


def partial_name(path: Path) -> Path:
    """The hidden name under which this process writes ``path``."""
    return path.with_name(f'{_prefix(path)}{os.getpid()}')


def remove_stale(path: Path) -> None:
    """Remove what processes of this machine that are gone left behind while they wrote ``path``."""
    prefix = _prefix(path)
    for left in path.parent.glob('.*'):
        process = left.name[len(prefix) :]
        if left.name.startswith(prefix) and process.isdigit() and not _runs(int(process)):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prefix(path: Path) -> str:
    return f'.{path.name}.partial-{platform.node()}-'


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _exchange(one: Path, other: Path) -> bool:
    rename = getattr(ctypes.CDLL(None, use_errno=True), 'renameat2', None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))
