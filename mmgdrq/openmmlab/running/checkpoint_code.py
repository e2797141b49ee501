"""Drop what mmengine would run as code when it loads a checkpoint."""

from typing import Any


def drop_code(checkpoint: dict[str, Any]) -> None:
    """Remove the config text that mmengine would run as Python when it resumes; what mmengine saves has none."""
    meta = checkpoint.get('meta')
    if isinstance(meta, dict):
        meta.pop('config', None)
