"""Resized maps agree with torch."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mmgdrq_runtime.interpolate import interpolate

side = st.integers(1, 60)


@given(side, side, side, side, st.booleans())
def test_it_is_that_of_torch(height, width, rows, columns, align_corners):
    maps = np.random.default_rng(height).normal(size=(3, height, width)).astype(np.float32)
    expected = F.interpolate(
        torch.from_numpy(maps)[None], (rows, columns), mode='bilinear', align_corners=align_corners
    )[0]
    # positions are rounded to float32: up to 60 pixels by 4e-6, on differences of up to 8
    assert np.abs(interpolate(maps, (rows, columns), align_corners) - expected.numpy()).max() < 4e-5
