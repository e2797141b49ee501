"""The manifest of a deployed model: what it is, and checksums of everything else."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

from .errors import CheckpointError

FORMAT, VERSION = 'mmgdrq-folded', 3
MANIFEST = 'manifest.json'
MAX_BYTES = 64 << 20
"""A manifest of more than that is not read; a layer takes about 300 bytes."""
PARTS = ('layers', 'graphs')
"""What has its checksum in the manifest itself."""
KEYS = {'format', 'version', 'sha256', 'config_sha256', *PARTS, *(f'{part}_sha256' for part in PARTS)}

PathLike = Union[str, Path]


def is_deployed(path: PathLike) -> bool:
    """Whether ``path`` is a directory that :func:`save_folded` wrote, of any version.

    Other programs name files ``manifest.json`` too, so its content decides.
    """
    try:
        manifest = _read(Path(path) / MANIFEST)
    except (OSError, RecursionError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get('format') == FORMAT


def read_manifest(path: PathLike) -> dict[str, Any]:
    """Read and check the manifest of a deployed model.

    Raises:
        CheckpointError: it is missing, not readable, altered, of another format or of another version.
    """
    file = Path(path) / MANIFEST
    if not Path(path).exists():
        raise CheckpointError(f'{path}: does not exist; expected the directory of a deployed model')
    try:
        manifest = _read(file)
    except (OSError, RecursionError, ValueError) as error:
        raise CheckpointError(
            f'{file}: cannot be read as the manifest of a deployed model ({error}). Write it again with tools/deploy.py'
        ) from None
    if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
        raise CheckpointError(f'{file}: is not the manifest of a deployed model (format {FORMAT!r} expected)')
    if manifest.get('version') != VERSION or isinstance(manifest['version'], bool):
        raise CheckpointError(
            f'{file}: has version {manifest.get("version")}, this mmgdrq reads version {VERSION}. Update mmgdrq, '
            'or write the model again with tools/deploy.py'
        )
    if set(manifest) != KEYS or any(manifest[f'{part}_sha256'] != json_sha256(manifest[part]) for part in PARTS):
        raise CheckpointError(f'{file}: was altered (its checksum differs). Write it again with tools/deploy.py')
    for part in PARTS:
        entries = manifest[part]
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise CheckpointError(f'{file}: {part} is not a table of tables. Write it again with tools/deploy.py')
    return manifest


def _read(file: Path) -> Any:
    with open(file, 'rb') as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f'it has more than {MAX_BYTES:,} bytes')
    return json.loads(content)


def json_sha256(value: Any) -> str:
    """Checksum of a value that json can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(file: Path) -> str:
    """Checksum of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(file, 'rb') as stream:
        for block in iter(lambda: stream.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def check_file(file: Path, sha256: Any, remedy: str = 'Write it again with tools/deploy.py') -> Path:
    """The file, if it has the checksum of the manifest.

    Raises:
        CheckpointError: it is missing or was altered.
    """
    if not file.is_file() or file_sha256(file) != sha256:
        raise CheckpointError(
            f'{file}: is missing, truncated or altered (its checksum is not that of the manifest). {remedy}'
        )
    return file


def graph_file(path: Path, engine: str, entry: Any, keys: Sequence[str] = ('file', 'sha256')) -> Path:
    """Find the file of a graph, in the folder of its engine, and check it.

    Args:
        path: directory of the deployed model.
        engine: that the graph is for.
        entry: what the manifest says of the graph.
        keys: texts that it has to hold.

    Raises:
        CheckpointError: the entry lacks a text, or the file is missing or was altered.
    """
    remedy = 'Write it again with tools/deploy.py --export'
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in keys):
        raise CheckpointError(f'{path}: its manifest lacks {" or ".join(keys)} of a graph for {engine}. {remedy}')
    return check_file(path / engine / Path(entry['file']).name, entry['sha256'], remedy)
