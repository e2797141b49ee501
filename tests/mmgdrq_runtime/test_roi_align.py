"""Regions equal those of mmcv in every bit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

from mmgdrq_runtime.roi_align import extract_regions, level_of, roi_align


def rois_of(rng, count, size):
    corner = rng.uniform(-20, size, (count, 2))
    rois = np.concatenate([corner, corner + rng.uniform(0, size, (count, 2))], 1).astype(np.float32)
    rois[::5] = np.round(rois[::5])
    rois[::7, 2:] = rois[::7, :2]  # without an area
    return rois


def with_image(rois):
    return torch.from_numpy(np.concatenate([np.zeros((len(rois), 1), np.float32), rois], 1))


@given(
    seed=st.integers(0, 10**6),
    ratio=st.integers(0, 3),
    aligned=st.booleans(),
    size=st.sampled_from([(7, 7), (2, 3)]),
    stride=st.sampled_from([4.0, 8.0]),
)
def test_it_is_that_of_mmcv(seed, ratio, aligned, size, stride):
    rng = np.random.default_rng(seed)
    feature, rois = rng.normal(size=(3, 15, 21)).astype(np.float32), rois_of(rng, 12, 100)
    spec = dict(size=list(size), sampling_ratio=ratio, aligned=aligned)
    layer = RoIAlign(size, 1 / stride, ratio, aligned=aligned)
    expected = layer(torch.from_numpy(feature)[None], with_image(rois)).numpy()
    assert np.array_equal(roi_align(feature, rois, 1 / stride, spec), expected)


@pytest.mark.parametrize('seed', range(3))
def test_levels_are_those_of_mmdet(seed):
    rng = np.random.default_rng(seed)
    strides = [4.0, 8.0, 16.0, 32.0]
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0)
    extractor = SingleRoIExtractor(layer, out_channels=2, featmap_strides=strides)
    features = [rng.normal(size=(2, int(512 // s), int(640 // s))).astype(np.float32) for s in strides]
    rois = rois_of(rng, 60, 500)
    expected = extractor([torch.from_numpy(f)[None] for f in features], with_image(rois)).numpy()
    spec = dict(strides=strides, size=[7, 7], sampling_ratio=0, aligned=True, finest_scale=56)
    assert np.array_equal(extract_regions(features, rois, spec), expected)


def test_the_border_between_two_levels():
    rois = np.float32([[0, 0, 112, 112], [0, 0, np.nextafter(np.float32(112), np.float32(0)), 112]])
    extractor = SingleRoIExtractor(dict(type='RoIAlign', output_size=7), 1, [4, 8])
    assert level_of(rois, 2, 56).tolist() == extractor.map_roi_levels(with_image(rois), 2).tolist()


def test_no_regions():
    spec = dict(strides=[4.0], size=[7, 7], sampling_ratio=0, aligned=True, finest_scale=56)
    assert extract_regions([np.zeros((5, 4, 4), np.float32)], np.zeros((0, 4), np.float32), spec).shape == (0, 5, 7, 7)
