"""Resized images equal those of OpenCV and Pillow in every bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgdrq_runtime.resize import KERNELS, resize_linear, resize_pillow

side = st.integers(1, 97)


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(side, side, side, side, st.integers(0, 9))
def test_linear_is_that_of_opencv(height, width, rows, columns, seed):
    cv2 = pytest.importorskip('cv2', reason='OpenCV is not installed')
    source = image(height, width, seed)
    assert np.array_equal(resize_linear(source, columns, rows), cv2.resize(source, (columns, rows)))


@pytest.mark.parametrize(
    'shape', [(427, 640, 800, 1199), (1080, 1920, 750, 1333), (128, 128, 64, 64), (64, 64, 128, 128)]
)
def test_usual_sizes(shape):
    cv2 = pytest.importorskip('cv2', reason='OpenCV is not installed')
    source = image(*shape[:2])
    assert np.array_equal(resize_linear(source, shape[3], shape[2]), cv2.resize(source, (shape[3], shape[2])))


@given(side, side, side, side, st.sampled_from(sorted(KERNELS)))
def test_the_others_are_those_of_pillow(height, width, rows, columns, interpolation):
    pillow = pytest.importorskip('PIL.Image', reason='Pillow is not installed')
    source = image(height, width)
    expected = pillow.fromarray(source).resize((columns, rows), getattr(pillow, interpolation.upper()))
    assert np.array_equal(resize_pillow(source, columns, rows, interpolation), np.array(expected))
