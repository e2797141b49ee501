"""The test pipeline of a config for images of an application: files or arrays, without annotations."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np

from ...errors import CheckpointError, InputError
from ..config_parts import class_name

Image = Union[str, Path, np.ndarray]
RGB_DATASETS = ('CIFAR10', 'CIFAR100')
"""Data sets of MMPretrain that hand arrays to their pipeline, whose colors are red, green and blue."""

GRAY_DATASETS = ('MNIST', 'FashionMNIST')
"""The same with arrays of shape ``(H, W)``."""

GRAY, COLOR, AS_IT_IS = 'gray', 'color', 'unchanged'
"""What a pipeline gets: arrays ``(H, W)``, arrays ``(H, W, 3)``, or what the file holds."""


def make_pipeline(cfg: Mapping[str, Any]) -> Callable[[Image], dict[str, Any]]:
    """What prepares one image as the config's test data set does.

    Args:
        cfg: the whole config; of a concatenation of data sets the first one counts.

    Returns:
        A function of a file or of an array, uint8: BGR ``(H, W, 3)``; for a config that reads its images in gray also
        ``(H, W)`` or ``(H, W, 1)``. It raises InputError for a file that cannot be read as an image, and for an array
        of another shape or type.

    Raises:
        CheckpointError: the config has no test pipeline.
    """
    from mmengine.dataset import Compose
    from mmengine.registry import TRANSFORMS

    dataset = dataset_of_test(cfg)
    first, steps = steps_of(dataset)
    colors = colors_of(dataset)
    load = TRANSFORMS.build(first) if first is not None else partial(_read_file, colors)
    rest = Compose([TRANSFORMS.build(step) for step in steps])
    rgb = is_rgb(dataset)

    def run(image: Image) -> dict[str, Any]:
        if isinstance(image, np.ndarray):
            sample = _from_array(_as_loaded(image, colors))
        else:
            sample = _from_file(load, str(image))
        if rgb:
            sample['img'] = np.ascontiguousarray(sample['img'][..., ::-1])
        return rest(sample)

    return run


def dataset_of_test(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes its test data; of a concatenation the first one.

    Raises:
        CheckpointError: there is none, or it has no pipeline.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset or dataset.get('datasets'):
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    if 'pipeline' not in dataset:
        raise CheckpointError(
            'load_deployed: the config has no test_dataloader with a pipeline, which prepares the images. Deploy with '
            'the config of the test'
        )
    return dataset


def steps_of(dataset: Mapping[str, Any]) -> tuple[Optional[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The step of a pipeline that loads images, None where its data set decodes them; and the steps after it.

    Those for annotations are left out.
    """
    steps = [step for step in dataset['pipeline'] if 'Annotations' not in str(step['type'])]
    loads = bool(steps) and class_name(steps[0]['type']).startswith('Load')
    return (steps[0], steps[1:]) if loads else (None, steps)


def is_rgb(dataset: Mapping[str, Any]) -> bool:
    """Whether the steps of a pipeline get images whose colors are red, green and blue."""
    return steps_of(dataset)[0] is None and class_name(dataset.get('type')) in RGB_DATASETS


def colors_of(dataset: Mapping[str, Any]) -> str:
    """:data:`GRAY`, :data:`COLOR` or :data:`AS_IT_IS`: what the steps of a pipeline get."""
    first, _ = steps_of(dataset)
    if first is None:
        return GRAY if class_name(dataset.get('type')) in GRAY_DATASETS else COLOR
    kind = str(first.get('color_type', 'color'))
    return GRAY if kind.startswith('grayscale') else AS_IT_IS if kind == 'unchanged' else COLOR


def _as_loaded(image: np.ndarray, colors: str) -> np.ndarray:
    """An array of an application as the config's step would load it from a file."""
    channels = image.shape[2] if image.ndim == 3 else 1 if image.ndim == 2 else 0
    valid = {COLOR: (3,), GRAY: (1, 3), AS_IT_IS: range(1, 5)}[colors]
    if image.dtype != np.uint8 or channels not in valid or not image.size or (colors == COLOR and image.ndim != 3):
        gray = ' or (H, W) in gray' if colors != COLOR else ''
        raise InputError(
            f'image: an array of shape {image.shape}, {image.dtype}; expected (H, W, 3), uint8, BGR, as cv2.imread '
            f'gives it{gray}'
        )
    if colors == COLOR or (channels > 1 and colors == AS_IT_IS):
        return image
    return image.reshape(image.shape[:2]) if channels == 1 else _to_gray(image)


def _to_gray(image: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def _from_array(image: np.ndarray) -> dict[str, Any]:
    shape = image.shape[:2]
    return dict(img=image, img_id=0, img_path=None, img_shape=shape, ori_shape=shape)


def _from_file(load: Callable[[dict], dict], path: str) -> dict[str, Any]:
    try:
        return load(dict(img_path=path, img_id=0))
    except (AssertionError, AttributeError, OSError, ValueError) as error:
        raise InputError(f'image: {path} cannot be read as an image ({error})') from None


def _read_file(colors: str, sample: dict[str, Any]) -> dict[str, Any]:
    """In the place of a loading step, where the data set of the config decodes its images itself."""
    import cv2

    image = cv2.imread(sample['img_path'], cv2.IMREAD_GRAYSCALE if colors == GRAY else cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError('cv2 knows no such format')
    return {**_from_array(image), **sample}
