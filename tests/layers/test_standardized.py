"""Scale-Clip of layers that standardize their weight."""

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d
from torch import nn

import mmgdrq


@pytest.mark.parametrize('cls', [ConvWS2d, ConvAWS2d])
def test_scale_clip_keeps_the_mean_of_each_filter_which_standardization_removes(cls):
    net = mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 4, 1), cls(4, 6, 3), nn.Conv2d(6, 2, 1)), weight=dict(bits=2))
    rng = np.random.default_rng(0)
    weight = rng.standard_t(2, size=(6, 4, 3, 3)) + np.arange(-3, 3)[:, None, None, None] * 10
    net[1].weight.data.copy_(torch.from_numpy(weight))
    net[1].scale_clip_()
    mean = weight.mean((1, 2, 3), keepdims=True)
    bound = 2 * np.abs(weight - mean).mean((1, 2, 3), keepdims=True)
    expected = mean + np.clip(weight - mean, -bound, bound)
    assert np.abs(expected - weight).max() > 1, 'some are clipped'
    np.testing.assert_allclose(net[1].weight.detach().numpy(), expected, rtol=0, atol=2e-5)
