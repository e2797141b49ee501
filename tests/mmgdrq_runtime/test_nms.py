"""Suppression by the rules of mmcv, index by index."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmcv.ops import batched_nms as reference

from mmgdrq_runtime.nms import batched_nms, nms


def settings(**changes):
    return dict(iou_threshold=0.5, class_agnostic=False, split_thr=10000, max_num=-1, **changes)


def boxes_of(rng, count, low=0.0, grid=None):
    corner, size = rng.uniform(low, 60, (count, 2)), rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([corner, corner + size], 1)
    return (boxes if grid is None else np.round(boxes / grid) * grid).astype(np.float32)


def expected(boxes, scores, ids, asked):
    found = reference(*map(torch.from_numpy, (boxes, scores, ids)), dict(type='nms', **asked))[1]
    return found.numpy()


def distinct(rng, count):
    """Scores without ties, whose order torch leaves open."""
    return (rng.permutation(count) + 1).astype(np.float32) / (count + 1)


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 80),
    classes=st.integers(1, 4),
    low=st.sampled_from([0.0, -20.0]),
    grid=st.sampled_from([None, 8.0]),
    change=st.sampled_from(
        [{}, {'class_agnostic': True}, {'split_thr': 5}, {'max_num': 3}, {'split_thr': 5, 'max_num': 3}]
    ),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_it_keeps_what_mmcv_keeps(seed, count, classes, low, grid, change, threshold):
    """Boxes on a grid have overlaps at exactly the threshold, and boxes without an area."""
    rng = np.random.default_rng(seed)
    boxes, scores, ids = boxes_of(rng, count, low, grid), distinct(rng, count), rng.integers(0, classes, count)
    asked = {**settings(), **change, 'iou_threshold': threshold}
    assert batched_nms(boxes, scores, ids, asked).tolist() == expected(boxes, scores, ids, asked).tolist()


@pytest.mark.parametrize('low', [0.0, -20.0])
def test_more_than_ten_thousand_boxes(low):
    rng = np.random.default_rng(0)
    boxes, scores, ids = boxes_of(rng, 10500, low), distinct(rng, 10500), rng.integers(0, 7, 10500)
    assert np.array_equal(batched_nms(boxes, scores, ids, settings()), expected(boxes, scores, ids, settings()))


def test_negative_coordinates_let_a_class_suppress_another():
    boxes = np.float32([[-9, 0, 1, 10], [2, 0, 3, 1], [-19, 0, -9, 10]])
    scores, ids = np.float32([0.9, 0.8, 0.7]), np.array([0, 0, 1])
    kept = batched_nms(boxes, scores, ids, settings())
    assert kept.tolist() == expected(boxes, scores, ids, settings()).tolist()


def test_no_boxes():
    assert batched_nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int), settings()).size == 0


def test_of_equal_scores_the_first_box_comes_first():
    boxes = np.float32([[0, 0, 9, 9]] * 20)
    assert nms(boxes, np.ones(20, np.float32), 0.5).tolist() == [0]
    apart = boxes + np.arange(20, dtype=np.float32)[:, None] * 10
    assert nms(apart, np.ones(20, np.float32), 0.5).tolist() == list(range(20))
