"""Pasted masks equal those of mmdet in every pixel."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

from mmgdrq_runtime.masks import paste


def expected(probability, boxes, shape, threshold):
    result = np.zeros((len(boxes), *shape), bool)
    for i in range(len(boxes)):
        mask, place = _do_paste_mask(
            torch.from_numpy(probability[i : i + 1])[:, None], torch.from_numpy(boxes[i : i + 1]), *shape
        )
        result[(i, *place)] = (mask >= threshold).numpy()[0]
    return result


@given(seed=st.integers(0, 10**6), whole=st.booleans(), threshold=st.sampled_from([0.0, 0.3, 0.5]))
def test_it_is_that_of_mmdet(seed, whole, threshold):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-5, 40, (6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 40, (6, 2))], 1).clip(0, 60).astype(np.float32)
    boxes = np.round(boxes) if whole else boxes
    boxes[-1, 2:] = boxes[-1, :2]  # without an area
    probability = rng.uniform(0, 1, (6, 14, 14)).astype(np.float32)
    found = paste(probability, boxes, (50, 60), threshold)
    assert np.array_equal(found, expected(probability, boxes, (50, 60), threshold))


def test_a_box_beside_the_image():
    masks = paste(np.ones((1, 4, 4), np.float32), np.float32([[-9, -8, -5, -4]]), (5, 6), 0.5)
    assert masks.shape == (1, 5, 6)
    assert not masks.any()
