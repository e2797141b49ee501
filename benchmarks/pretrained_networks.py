"""Two networks with public weights, images to calibrate them, and their metric; ``data/`` holds both."""

import contextlib
import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
import timm
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / 'data'
YOLOX = ROOT / 'benchmarks' / 'configs' / 'yolox_nano_coco128.py'


@dataclass(frozen=True)
class Network:
    """A network with public weights.

    Attributes:
        title: name, data and metric, for the page.
        build: makes the float model with its weights, in evaluation mode.
        calibration: a number of images -> batches that :func:`mmgdrq.calibrate` takes.
        evaluate: a model and a number of images (0: all) -> its metric in percent.
    """

    title: str
    build: Callable[[], nn.Module]
    calibration: Callable[[int], Iterator[Any]]
    evaluate: Callable[[nn.Module, int], float]


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with Google's weights; its padded convolutions are a ``ZeroPad2d`` and a ``Conv2d``."""
    model = timm.create_model('tf_efficientnet_lite0')
    saved = torch.load(DATA / 'pretrained' / 'efficientnet_lite0.pth', map_location='cpu')
    model.load_state_dict(dict(zip(model.state_dict(), saved.values())))  # other names, the same order
    for name, layer in list(model.named_modules()):
        if type(layer).__name__ == 'Conv2dSame':
            parent, _, child = name.rpartition('.')
            setattr(model.get_submodule(parent), child, _pad_and_convolve(layer))
    return model.eval()


def _pad_and_convolve(layer: nn.Conv2d) -> nn.Sequential:
    total = layer.kernel_size[0] - layer.stride[0]  # of an even size
    shape = layer.in_channels, layer.out_channels, layer.kernel_size
    conv = nn.Conv2d(*shape, layer.stride, groups=layer.groups, bias=layer.bias is not None)
    conv.load_state_dict(layer.state_dict())
    return nn.Sequential(nn.ZeroPad2d([total // 2, total - total // 2] * 2), conv)


def _images(split: str, count: int, size: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    with open(DATA / 'imagenet' / f'{split}.csv', encoding='utf-8') as stream:
        rows = list(csv.DictReader(stream))[: count or None]
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield torch.stack([_image(row['file']) for row in part]), torch.tensor([int(row['class']) for row in part])


def _image(file: str, side: int = 224) -> Tensor:
    with Image.open(DATA / 'imagenet' / file) as image:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        array = np.asarray(image.convert('RGB').crop((left, top, left + side, top + side)), np.float32)
    return (torch.from_numpy(array.transpose(2, 0, 1).copy()) - 127) / 128


@torch.no_grad()
def top1(model: nn.Module, count: int = 0) -> float:
    """Top-1 accuracy on the first ``count`` images (0: on all 1,300)."""
    model.eval()
    hits = [model(images).argmax(1) == labels for images, labels in _images('val', count)]
    return 100 * torch.cat(hits).float().mean().item()


def yolox() -> nn.Module:
    """YOLOX-nano with Megvii's weights, as mmdet builds it."""
    from mmdet.registry import MODELS

    cfg = _yolox_config()
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    model.load_state_dict(torch.load(DATA / 'pretrained' / 'yolox_nano_mmdet.pth', map_location='cpu')['state_dict'])
    return model.eval()


def _yolox_config() -> Config:
    cfg = Config.fromfile(YOLOX)
    for key in ('train_dataloader', 'val_dataloader'):
        cfg[key].dataset.data_root = f'{DATA}/coco/'
    cfg.val_evaluator.ann_file = f'{DATA}/coco/val.json'
    return cfg


def _coco_batches(count: int) -> Iterator[dict]:
    cfg = _yolox_config()
    init_default_scope('mmdet')
    loader = Runner.build_dataloader(cfg.train_dataloader)
    return itertools.islice(loader, -(-count // cfg.train_dataloader.batch_size))


@torch.no_grad()
def average_precision(model: nn.Module, count: int = 0) -> float:
    """COCO's AP on the first ``count`` images (0: on all 128), not rounded as mmdet's metric is."""
    cfg = _yolox_config()
    init_default_scope('mmdet')
    loader = Runner.build_dataloader(cfg.val_dataloader)
    truth = _quiet(lambda: COCO(cfg.val_evaluator.ann_file))
    categories = truth.getCatIds(catNms=loader.dataset.metainfo['classes'])
    batches = itertools.islice(loader, -(-count // cfg.val_dataloader.batch_size) if count else None)
    samples = [sample for batch in batches for sample in model.eval().test_step(batch)]
    found = [row for sample in samples for row in _rows(sample, categories)]
    return 100 * _quiet(lambda: _coco_ap(truth, found, [sample.img_id for sample in samples]))


def _quiet(call: Callable) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return call()


def _coco_ap(truth: COCO, found: list[dict], images: list[int]) -> float:
    evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
    evaluation.params.imgIds = images
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        step()
    return float(evaluation.stats[0])


def _rows(sample: Any, categories: list[int]) -> Iterator[dict]:
    found = sample.pred_instances
    for (left, top, right, bottom), score, label in zip(found.bboxes.tolist(), found.scores.tolist(), found.labels):
        box = [left, top, right - left, bottom - top]
        yield dict(image_id=sample.img_id, category_id=categories[label], bbox=box, score=score)


NETWORKS = {
    'efficientnet_lite0': Network(
        'EfficientNet-Lite0, top-1 on 1,300 images of ImageNet',
        lite0,
        lambda count: (images for images, _ in _images('calibration', count)),
        top1,
    ),
    'yolox_nano': Network('YOLOX-nano, AP on 128 images of COCO', yolox, _coco_batches, average_precision),
}
