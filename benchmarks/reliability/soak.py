"""Thousands of training iterations of a narrow Faster R-CNN: memory, thresholds, speed."""

import gc
import os
import time
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.structures import InstanceData

from mmgdrq import ScaleClip
from mmgdrq.layers import activation_quantizers
from tests.openmmlab.test_builder import detector_config

EVERY = 25
WARM_UP = 0.25
"""Share of the iterations after which memory counts: until then the allocator grows to the sizes that occur."""
SIZES = (64, 80, 96)
PAGE = os.sysconf('SC_PAGE_SIZE')


def resident_mb() -> float:
    """Memory of this process that is in RAM."""
    return int(Path('/proc/self/statm').read_text(encoding='utf-8').split()[1]) * PAGE / 1e6


def batch_of(iteration: int) -> dict:
    """Two images of one size with none to three objects each; all of it differs from iteration to iteration."""
    random = np.random.default_rng(iteration)
    size = tuple(int(side) for side in random.choice(SIZES, 2))
    samples, images = [], []
    for _ in range(2):
        shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
        sample = DetDataSample(metainfo=dict(shapes, scale_factor=(1.0, 1.0)))
        corners = random.uniform(0, 32, (random.integers(4), 2))
        boxes = np.concatenate([corners, corners + random.uniform(8, 30, corners.shape)], 1)
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32), labels=torch.tensor(random.integers(3, size=len(boxes)))
        )
        samples.append(sample)
        images.append(torch.from_numpy(random.integers(0, 256, (3, *size), dtype=np.uint8)))
    return dict(inputs=images, data_samples=samples)


def soak(folder: Path, iterations: int, limit: float = float('inf')) -> dict:
    """Train on one thread.

    Args:
        limit: seconds after which it ends before that; the result says how many iterations there were.

    Returns:
        slope of the memory in MB per 1,000 iterations and its standard error; how many Python objects more there
        were at the end than after the warm-up; medians of the CPU time of an iteration in the first and the last
        quarter (other work on the machine hardly changes it); whether all thresholds and losses were finite.
    """
    register_all_modules()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MODELS.build(detector_config(folder).model)
    model.init_weights()
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    ScaleClip(model).attach(optimizer)
    memory, seconds, finite = [], [], True
    end = time.monotonic() + limit
    while len(seconds) < iterations and time.monotonic() < end:
        iteration, begin = len(seconds), time.process_time()
        data = model.data_preprocessor(batch_of(iteration), training=True)
        total, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seconds.append(time.process_time() - begin)
        if iteration % EVERY == 0:
            thresholds = torch.stack([q.threshold for q in activation_quantizers(model)])
            finite &= bool(torch.isfinite(thresholds).all()) and bool(torch.isfinite(total))
            gc.collect()
            memory.append((iteration, resident_mb(), len(gc.get_objects())))
    return dict(figures(np.array(memory), np.array(seconds)), finite=finite)


def figures(memory: np.ndarray, seconds: np.ndarray) -> dict:
    """What the page shows.

    Args:
        memory: rows of iteration, MB, Python objects.
        seconds: of CPU time, of every iteration.
    """
    x, y, objects = memory[memory[:, 0] >= WARM_UP * len(seconds)].T
    (slope, _), covariance = np.polyfit(x / 1000, y, 1, cov=True)
    quarter = len(seconds) // 4
    first, last = (float(np.median(part)) * 1000 for part in (seconds[:quarter], seconds[-quarter:]))
    return dict(
        iterations=len(seconds),
        slope_mb=round(float(slope), 3),
        slope_error_mb=round(float(covariance[0, 0] ** 0.5), 3),
        memory_mb=round(float(y[-1]), 1),
        objects=int(objects[-1] - objects[0]),
        first_ms=round(first, 1),
        last_ms=round(last, 1),
        memory=[[int(i), round(float(mb), 1)] for i, mb, _ in memory],
    )
