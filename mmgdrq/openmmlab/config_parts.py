"""What the parts of a config of OpenMMLab say."""

from typing import Any

from mmengine.config.lazy import LazyAttr, LazyObject

TYPES = ('type', 'base_type')
"""Keys whose value is a class or its name."""

WEIGHTS = ('pretrained', 'teacher_ckpt')
"""Keys by which some models load weights while they are built."""


def class_name(kind: Any) -> str:
    """Name of a class without its scope or module.

    Args:
        kind: the ``type`` of a part of a config: a name or a class; None, where it has none, gives ``'None'``.

    >>> class_name('mmgdrq.GDRQHook')
    'GDRQHook'
    """
    return kind.__name__ if isinstance(kind, type) else str(kind).split('.')[-1]


def name_types(part: Any) -> None:
    """Let the types in a config of mmengine's pure Python style be names, in place, as they are in all other configs.

    Such a name is the path of the class, which mmengine builds as well. Other imported values stay as they are.

    Args:
        part: dicts and lists of a config, however deep.
    """
    for key, value in list(dict.items(part) if isinstance(part, dict) else enumerate(part)):
        if key in TYPES and isinstance(value, (LazyAttr, LazyObject)):
            part[key] = f'{value.module}.{value}'
        elif isinstance(value, (dict, list, tuple)):
            name_types(value)


def registered(registry: Any, kind: Any) -> Any:
    """The class that a registry builds for a type in the current scope; None where it knows none.

    Args:
        registry: of mmengine.
        kind: the ``type`` of a part of a config: a name or a class.
    """
    if isinstance(kind, type):
        return kind
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(str(kind))


def without_weights(part: Any) -> Any:
    """A copy of a part of a config that loads no weights when a model is built or initialized.

    ``pretrained``, ``teacher_ckpt`` and every ``init_cfg`` of type ``Pretrained`` go, however deep they lie; ways to
    initialize without a file stay.

    >>> without_weights(dict(pretrained='url', neck=dict(init_cfg=dict(type='Pretrained', checkpoint='url'))))
    {'pretrained': None, 'neck': {'init_cfg': None}}
    """
    if isinstance(part, dict):
        items = dict.items(part)  # not those of ConfigDict, which imports what is imported lazily
        return type(part)(
            {key: None if key in WEIGHTS or _loads(value) else without_weights(value) for key, value in items}
        )
    if isinstance(part, (list, tuple)):
        return type(part)([without_weights(item) for item in part if not _loads(item)])
    return part


def _loads(part: Any) -> bool:
    return isinstance(part, dict) and class_name(part.get('type')) in ('Pretrained', 'PretrainedInit')
