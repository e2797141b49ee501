"""Tiny data sets in the formats that the shipped configs read: two small images each."""

import json
import pickle
from pathlib import Path
from typing import Any, Callable

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image

WIDTH, HEIGHT = 80, 64
BOX = (8, 8, 44, 40)
"""x, y, width and height of the object in every image, in pixels."""


def write_image(path: Path, seed: int) -> None:
    """A random image; JPEG or PNG by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def write_labels(path: Path) -> None:
    """A map of labels: 1 in the box, 2 around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.full((HEIGHT, WIDTH), 2, dtype=np.uint8)
    x, y, width, height = BOX
    labels[y : y + height, x : x + width] = 1
    Image.fromarray(labels).save(path)


def coco(root: Path, dataset: dict) -> None:
    """Boxes and polygons in COCO's json file."""
    classes = dataset.get('metainfo', {}).get('classes') or DATASETS.get('mmdet.CocoDataset').METAINFO['classes']
    x, y, width, height = BOX
    shape = dict(bbox=BOX, area=width * height, iscrowd=0)
    shape['segmentation'] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=WIDTH, height=HEIGHT) for i in range(2)],
        annotations=[dict(shape, id=i, image_id=i, category_id=1) for i in range(2)],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(classes)],
    )
    for i in range(2):
        write_image(root / dataset['data_prefix']['img'] / f'{i}.jpg', i)
    file = root / dataset['ann_file']
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def segmentation(suffixes: tuple[str, str], folder: str = '') -> Callable[[Path, dict], None]:
    """A folder of images and one of label maps; with a list of the names, if the config has one."""

    def write(root: Path, dataset: dict) -> None:
        prefix = dataset['data_prefix']
        for i in range(2):
            write_image(root / prefix['img_path'] / folder / f'{i}{suffixes[0]}', i)
            write_labels(root / prefix['seg_map_path'] / folder / f'{i}{suffixes[1]}')
        if dataset.get('ann_file'):
            file = root / dataset['ann_file']
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('0\n1\n')

    return write


def imagenet(root: Path, dataset: dict) -> None:
    """Images in folders by class, and the list of them."""
    names = [f'n{i:08}/{i}.JPEG' for i in range(2)]
    for i, name in enumerate(names):
        path = root / 'train' / name
        write_image(path.with_suffix('.jpg'), i)
        path.with_suffix('.jpg').rename(path)
    (root / 'meta').mkdir()
    (root / 'meta/train.txt').write_text(''.join(f'{name} {i}\n' for i, name in enumerate(names)))


def cifar10(root: Path, dataset: dict) -> None:
    """The five pickled batches for training and the one for test. Their checksums are not those of CIFAR-10."""
    folder = root / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    batch = dict(data=rng.integers(0, 256, (2, 3072), dtype=np.uint8), labels=[0, 1])
    for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
        (folder / name).write_bytes(pickle.dumps(batch))


WRITERS: dict[str, Callable[[Path, dict], None]] = dict(
    CocoDataset=coco,
    CityscapesDataset=segmentation(('_leftImg8bit.png', '_gtFine_labelTrainIds.png'), folder='a town'),
    ADE20KDataset=segmentation(('.jpg', '.png')),
    PascalVOCDataset=segmentation(('.jpg', '.png')),
    ImageNet=imagenet,
    CIFAR10=cifar10,
)


def write(dataset: dict[str, Any], root: Path) -> None:
    """Write what a dataset config wants to read below ``root``, and point the config there."""
    for part in dataset.get('datasets') or [dataset['dataset']] if 'data_root' not in dataset else []:
        write(part, root)
    if 'data_root' in dataset:
        WRITERS[dataset['type']](root, dataset)
        dataset['data_root'] = str(root)
