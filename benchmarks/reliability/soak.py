"""Thousands of training iterations of a narrow Faster R-CNN: memory, thresholds, speed."""

import os
import time
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

from mmgdrq import ScaleClip
from mmgdrq.layers import activation_quantizers
from tests.test_builder import batch, detector_config

EVERY = 25
PAGE = os.sysconf('SC_PAGE_SIZE')


def resident_mb() -> float:
    """Memory of this process that is in RAM."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * PAGE / 1e6


def soak(folder: Path, iterations: int, limit: float = float('inf')) -> dict:
    """Train; the first tenth (at most 200 iterations) warms up and does not count for the slope.

    Args:
        limit: seconds after which it ends before that; the result says how many iterations there were.

    Returns:
        slope of the memory in MB per 1,000 iterations and its standard error; medians of the seconds an iteration
        in the first and the last quarter; whether all thresholds and losses were finite.
    """
    register_all_modules()
    torch.manual_seed(0)
    model = MODELS.build(detector_config(folder).model)
    model.init_weights()
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    ScaleClip(model).attach(optimizer)
    memory, seconds, finite = [], [], True
    end = time.monotonic() + limit
    while len(seconds) < iterations and time.monotonic() < end:
        iteration, begin = len(seconds), time.perf_counter()
        data = model.data_preprocessor(batch(), training=True)
        total, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
        if iteration % EVERY == 0:
            memory.append((iteration, resident_mb()))
            thresholds = torch.stack([q.threshold for q in activation_quantizers(model)])
            finite &= bool(torch.isfinite(thresholds).all()) and bool(torch.isfinite(total))
    iterations = len(seconds)
    x, y = np.array([row for row in memory if row[0] >= min(200, iterations // 10)]).T
    (slope, _), covariance = np.polyfit(x / 1000, y, 1, cov=True)
    quarter = iterations // 4
    return dict(
        iterations=iterations,
        slope_mb=round(float(slope), 3),
        slope_error_mb=round(float(covariance[0, 0] ** 0.5), 3),
        memory_mb=round(memory[-1][1], 1),
        first_ms=round(float(np.median(seconds[:quarter])) * 1000, 1),
        last_ms=round(float(np.median(seconds[-quarter:])) * 1000, 1),
        finite=finite,
    )
