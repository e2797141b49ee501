"""Time what happens after the graphs at the usual size of COCO's images: python benchmarks/post_processing.py

Random maps of detectors with 80 classes at 800x1344, in CPU time. The maps of RetinaNet have thousands of scores above
0.05, as a crowded image has; there are 1,000 proposals for RoIAlign.
"""

import argparse
import statistics
import time
from typing import Any, Callable

import numpy as np

from mmgdrq_runtime.decoders.dense import decode_dense
from mmgdrq_runtime.decoders.two_stage import propose
from mmgdrq_runtime.preprocessing import ImageInfo, resized
from mmgdrq_runtime.resize import resize_linear
from mmgdrq_runtime.roi_align import extract_regions

SHAPE = (800, 1344)
INFO = ImageInfo((600, 1000), (800, 1333), (1.333, 1.333), SHAPE)
NMS = dict(iou_threshold=0.5, class_agnostic=False, split_thr=10000, max_num=-1)
CODER = dict(type='deltas', size=4, means=[0.0] * 4, stds=[1.0] * 4, max_ratio=4.1, center_clamp=None, clip=True)
ROI = dict(strides=[4, 8, 16, 32], size=[7, 7], sampling_ratio=0, aligned=True, finest_scale=56)


def maps_of(
    rng: np.random.Generator, channels: int, strides: list[int], mean: float, spread: float
) -> list[np.ndarray]:
    shapes = [(channels, -(-SHAPE[0] // stride), -(-SHAPE[1] // stride)) for stride in strides]
    return [rng.normal(mean, spread, shape).astype(np.float32) for shape in shapes]


def spec_of(strides: list[int], anchors: int, classes: int, limit: int, threshold: float) -> dict[str, Any]:
    base = [
        [[-4.0 * s * (1 + 0.3 * i), -4.0 * s, 4.0 * s * (1 + 0.3 * i), 4.0 * s] for i in range(anchors)]
        for s in strides
    ]
    return dict(
        outputs=classes,
        activation='sigmoid',
        factors=False,
        score_thr=0.05,
        priors=dict(type='anchors', base=base, strides=[[s, s] for s in strides]),
        coder=CODER,
        nms_pre=1000,
        min_box_size=0,
        nms={**NMS, 'iou_threshold': threshold},
        max_per_image=limit,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=5)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    retina, levels = spec_of([8, 16, 32, 64, 128], 9, 80, 100, 0.5), [8, 16, 32, 64, 128]
    maps = maps_of(rng, 720, levels, -5, 1) + maps_of(rng, 36, levels, 0, 0.1)
    rpn, levels = spec_of([4, 8, 16, 32, 64], 3, 1, 1000, 0.7), [4, 8, 16, 32, 64]
    scores, boxes = maps_of(rng, 3, levels, 0, 1), maps_of(rng, 12, levels, 0, 0.1)
    features, rois = maps_of(rng, 256, levels[:4], 5, 1), propose(scores, boxes, INFO, rpn)
    image = rng.integers(0, 256, (*INFO.shape, 3), dtype=np.uint8)
    work: dict[str, Callable[[], Any]] = {
        'RetinaNet: boxes and suppression': lambda: decode_dense(maps, INFO, retina, {}),
        'RPN: 1,000 proposals': lambda: propose(scores, boxes, INFO, rpn),
        'RoIAlign of 1,000 regions, 256 channels': lambda: extract_regions(features, rois, ROI),
        'resize 1000x600 to 1333x800 with numpy': lambda: resize_linear(image, 1333, 800),
        'the same with what is installed': lambda: resized(image, 1333, 800, 'cv2', 'bilinear'),
    }
    print('| step | milliseconds |\n|---|---|')
    for name, function in work.items():
        print(f'| {name} | {1000 * median_seconds(function, rounds):.0f} |')


def median_seconds(function: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return statistics.median(times)


if __name__ == '__main__':
    main()
