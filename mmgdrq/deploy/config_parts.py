"""What the parts of a config of OpenMMLab say."""

from collections.abc import Mapping
from typing import Any

WEIGHTS = ('pretrained', 'teacher_ckpt')
"""Keys by which some models load weights while they are built."""


def class_name(config: Mapping[str, Any]) -> str:
    """Name of the class that a part of a config names, without scope or module; ``'None'`` where it names none.

    >>> class_name(dict(type='mmgdrq.hooks.GDRQHook'))
    'GDRQHook'
    """
    kind = config.get('type')
    return kind.__name__ if isinstance(kind, type) else str(kind).split('.')[-1]


def without_weights(part: Any) -> Any:
    """A copy of a part of a config that loads no weights when a model is built or initialized.

    ``pretrained``, ``teacher_ckpt`` and every ``init_cfg`` of type ``Pretrained`` go, however deep they lie; ways to
    initialize without a file stay.

    >>> without_weights(dict(pretrained='url', neck=dict(init_cfg=dict(type='Pretrained', checkpoint='url'))))
    {'pretrained': None, 'neck': {'init_cfg': None}}
    """
    if isinstance(part, dict):
        kept = {key: None if key in WEIGHTS or _loads(value) else without_weights(value) for key, value in part.items()}
        return type(part)(kept)
    if isinstance(part, (list, tuple)):
        return type(part)([without_weights(item) for item in part if not _loads(item)])
    return part


def _loads(part: Any) -> bool:
    return isinstance(part, dict) and class_name(part) in ('Pretrained', 'PretrainedInit')
