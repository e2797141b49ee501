"""Describe the test pipeline and the data preprocessor of a config."""

from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from torch import nn

from ...errors import ExportError
from ..config_parts import class_name, registered
from ..deployed.image_pipeline import COLOR, colors_of, is_rgb, steps_of

Step = Mapping[str, Any]
OWNERS = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain')
"""Packages whose transforms have these names; one of the same name of somebody else is another transform."""


def describe_preprocessing(dataset: Mapping[str, Any], preprocessor: nn.Module) -> dict[str, Any]:
    """Say how an image becomes a tensor.

    Args:
        dataset: part of a config, with the test pipeline.
        preprocessor: of the built model.

    Raises:
        ExportError: names the transform or the setting that is not known.
    """
    load, steps = steps_of(dataset)
    if load is not None:
        _check_load(load)
    if colors_of(dataset) != COLOR:
        raise ExportError(f'data set {class_name(dataset.get("type"))}: images in gray are not known')
    described = [dict(type='reverse_channels')] if is_rgb(dataset) else []
    for step in steps:
        described += _describe_step(step)
    return dict(steps=described, **_describe_preprocessor(preprocessor))


def _check_load(step: Step) -> None:
    _keys(step, 'backend_args', 'file_client_args', 'ignore_empty')
    if class_name(step['type']) != 'LoadImageFromFile':
        raise ExportError(f'transform {class_name(step["type"])}: is not known')


def _describe_step(step: Step) -> list[dict[str, Any]]:
    name = class_name(step['type'])
    if name.startswith('Pack') or 'Annotations' in name:
        return []
    if name not in STEPS or not _is_of_openmmlab(step['type']):
        raise ExportError(f'transform {name}: is not known. Known are {", ".join(STEPS)}')
    return [STEPS[name](step)]


def _is_of_openmmlab(kind: Any) -> bool:
    from mmengine.registry import TRANSFORMS

    found = registered(TRANSFORMS, kind)
    return found is not None and found.__module__.split('.')[0] in OWNERS


def _keys(step: Step, *known: str) -> None:
    """Refuse settings that are not described."""
    for key in step:
        if key not in ('type', *known):
            raise ExportError(f'transform {class_name(step["type"])}: {key}={step[key]!r} is not known')


def _interpolation(step: Step) -> dict[str, str]:
    library, interpolation = step.get('backend', 'cv2'), step.get('interpolation', 'bilinear')
    if interpolation not in (('bilinear',) if library == 'cv2' else ('bilinear', 'bicubic')):
        raise ExportError(
            f'transform {class_name(step["type"])}: interpolation {interpolation!r} of {library} is not known'
        )
    return dict(library=library, interpolation=interpolation)


def _resize(step: Step) -> dict[str, Any]:
    _keys(step, 'scale', 'keep_ratio', 'backend', 'interpolation', 'clip_object_border')
    scale = _pair(step['scale'])
    return dict(type='resize', scale=scale, keep_ratio=bool(step.get('keep_ratio', False)), **_interpolation(step))


def _resize_edge(step: Step) -> dict[str, Any]:
    _keys(step, 'scale', 'edge', 'backend', 'interpolation')
    return dict(type='resize_edge', size=step['scale'], edge=step.get('edge', 'short'), **_interpolation(step))


def _center_crop(step: Step) -> dict[str, Any]:
    _keys(step, 'crop_size', 'clip_object_border')
    return dict(type='center_crop', size=_pair(step['crop_size']))


def _pad(step: Step) -> dict[str, Any]:
    _keys(step, 'size', 'size_divisor', 'pad_to_square', 'pad_val', 'padding_mode')
    if step.get('padding_mode', 'constant') != 'constant':
        raise ExportError(f'transform Pad: padding_mode={step["padding_mode"]!r} is not known')
    return dict(
        type='pad',
        size=_pair(step['size']) if step.get('size') is not None else None,
        divisor=step.get('size_divisor'),
        square=bool(step.get('pad_to_square', False)),
        value=_color(step.get('pad_val', 0)),
    )


def _color(value: Any) -> list[int]:
    """The three numbers that OpenCV fills with; of a bare float it fills the first channel only."""
    value = value.get('img', 0) if isinstance(value, Mapping) else value
    values = [value] * 3 if isinstance(value, int) else [value, 0, 0] if isinstance(value, float) else list(value)
    if any(number != int(number) for number in values):
        raise ExportError(f'transform Pad: pad_val {value!r} is not a whole number')
    return [int(number) for number in values]


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


STEPS: dict[str, Callable[[Step], dict[str, Any]]] = {
    'Resize': _resize,
    'ResizeEdge': _resize_edge,
    'CenterCrop': _center_crop,
    'Pad': _pad,
}
"""Transform -> what describes it."""


def _describe_preprocessor(preprocessor: nn.Module) -> dict[str, Any]:
    settings = _settings_of(preprocessor)
    normalizes = preprocessor._enable_normalize
    return dict(
        mean=_three(preprocessor.mean.flatten().tolist()) if normalizes else None,
        std=_three(preprocessor.std.flatten().tolist()) if normalizes else None,
        **settings,
    )


def _settings_of(preprocessor: nn.Module) -> dict[str, Any]:
    name = type(preprocessor).__name__
    padding: dict[str, Optional[Any]] = dict(pad_size=None)
    if name == 'SegDataPreProcessor':
        test = preprocessor.test_cfg or {}
        if test.get('size') is not None:
            padding['pad_size'] = _pair(test['size'])
        padding.update(pad_divisor=test.get('size_divisor') or 1, pad_value=preprocessor.pad_val)
        return dict(reverse_channels=bool(preprocessor.channel_conversion), **padding)
    padding.update(pad_divisor=getattr(preprocessor, 'pad_size_divisor', 1))
    if name == 'DetDataPreprocessor':
        return dict(
            reverse_channels=bool(preprocessor._channel_conversion), pad_value=preprocessor.pad_value, **padding
        )
    if name == 'ClsDataPreprocessor':
        return dict(reverse_channels=bool(preprocessor.to_rgb), pad_value=preprocessor.pad_value, **padding)
    raise ExportError(f'data preprocessor {name}: is not known')


def _three(values: Sequence[float]) -> list[float]:
    return list(values) * 3 if len(values) == 1 else list(values)
