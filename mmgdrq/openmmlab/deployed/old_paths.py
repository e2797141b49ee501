"""Paths of what is registered, in configs in mmengine's pure Python style and those that earlier versions dumped."""

from typing import Any

OLD_PATHS = {
    'mmgdrq.build_quantized': 'mmgdrq.Quantized',
    'mmgdrq.build_ssd_head': 'mmgdrq.SSDHead',
    'mmgdrq.builder.build_quantized': 'mmgdrq.Quantized',
    'mmgdrq.heads.build_ssd_head': 'mmgdrq.SSDHead',
    'mmgdrq.hooks.checkpoint.CheckpointFitHook': 'mmgdrq.CheckpointFitHook',
    'mmgdrq.hooks.checkpoint.DeployedModelHook': 'mmgdrq.DeployedModelHook',
    'mmgdrq.hooks.gdrq.GDRQHook': 'mmgdrq.GDRQHook',
    'mmgdrq.hooks.range_check.RangeCheckHook': 'mmgdrq.RangeCheckHook',
    'mmgdrq.hooks.safe_checkpoint.SafeCheckpointHook': 'mmgdrq.CheckpointHook',
    'mmgdrq.hooks.scale_clip.ScaleClipHook': 'mmgdrq.ScaleClipHook',
    'mmgdrq.openmmlab.builder.build_quantized': 'mmgdrq.Quantized',
    'mmgdrq.openmmlab.ssd_head.build_ssd_head': 'mmgdrq.SSDHead',
    'mmgdrq.layers.conv.Conv2d': 'mmgdrq.Conv2d',
    'mmgdrq.layers.conv_nd.Conv1d': 'mmgdrq.Conv1d',
    'mmgdrq.layers.conv_nd.Conv3d': 'mmgdrq.Conv3d',
    'mmgdrq.layers.linear.Linear': 'mmgdrq.Linear',
    'mmgdrq.layers.transposed.ConvTranspose1d': 'mmgdrq.ConvTranspose1d',
    'mmgdrq.layers.transposed.ConvTranspose2d': 'mmgdrq.ConvTranspose2d',
    'mmgdrq.layers.transposed.ConvTranspose3d': 'mmgdrq.ConvTranspose3d',
}
"""Path -> name by which it is registered now. Configs in the pure Python style hold the object, a dump its path."""


def use_registered_names(part: Any) -> None:
    """Replace old paths in a config, in place.

    Args:
        part: dicts and lists of a config, however deep.

    >>> config = dict(custom_hooks=[dict(type='mmgdrq.hooks.gdrq.GDRQHook')])
    >>> use_registered_names(config)
    >>> config
    {'custom_hooks': [{'type': 'mmgdrq.GDRQHook'}]}
    """
    for key, value in list(dict.items(part) if isinstance(part, dict) else enumerate(part)):
        if isinstance(value, str) and value in OLD_PATHS:
            part[key] = OLD_PATHS[value]
        elif isinstance(value, (dict, list, tuple)):
            use_registered_names(value)
