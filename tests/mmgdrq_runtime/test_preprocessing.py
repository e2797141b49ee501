"""Tensors and sizes equal those of OpenMMLab's transforms and data preprocessors in every bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, init_default_scope

import mmgdrq_runtime.preprocessing
from mmgdrq.openmmlab.deployed.image_pipeline import dataset_of_test, make_pipeline
from mmgdrq.openmmlab.pipeline_json.preprocessing import describe_preprocessing
from mmgdrq_runtime.preprocessing import prepare

LOAD = dict(type='LoadImageFromFile')
COLORS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
META = ('ori_shape', 'img_shape', 'scale_factor')
CASES = {
    'COCO': (
        'mmdet',
        [LOAD, dict(type='Resize', scale=(133, 80), keep_ratio=True), dict(type='PackDetInputs', meta_keys=META)],
        dict(type='DetDataPreprocessor', **COLORS, bgr_to_rgb=True, pad_size_divisor=32),
    ),
    'YOLOX': (
        'mmdet',
        [
            LOAD,
            dict(type='Resize', scale=(64, 64), keep_ratio=True),
            dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 113.0, 112.0))),
            dict(type='PackDetInputs', meta_keys=META),
        ],
        dict(type='DetDataPreprocessor', pad_size_divisor=32),
    ),
    'bare float': (
        'mmdet',
        [
            LOAD,
            dict(type='Resize', scale=(64, 48)),
            dict(type='Pad', size=(80, 96), pad_val=dict(img=114.0)),
            dict(type='PackDetInputs', meta_keys=META),
        ],
        dict(type='DetDataPreprocessor', mean=[1.0], std=[2.0], pad_size_divisor=32, pad_value=-3),
    ),
    'ImageNet': (
        'mmpretrain',
        [
            LOAD,
            dict(type='ResizeEdge', scale=64, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=57),
            dict(type='PackInputs'),
        ],
        dict(type='ClsDataPreprocessor', **COLORS, to_rgb=True),
    ),
    'Cityscapes': (
        'mmseg',
        [LOAD, dict(type='Resize', scale=(96, 48), keep_ratio=True), dict(type='PackSegInputs')],
        dict(type='SegDataPreProcessor', **COLORS, bgr_to_rgb=True, size=(64, 64), test_cfg=dict(size_divisor=32)),
    ),
    'padded to a size': (
        'mmseg',
        [LOAD, dict(type='Pad', size_divisor=16, pad_val=7), dict(type='PackSegInputs')],
        dict(type='SegDataPreProcessor', **COLORS, pad_val=0.5, test_cfg=dict(size=(64, 160))),
    ),
    'CIFAR': ('mmpretrain', [dict(type='PackInputs')], dict(type='ClsDataPreprocessor', **COLORS)),
}


def both(name: str):
    """OpenMMLab's preprocessing and its description."""
    scope, pipeline, preprocessor = CASES[name]
    init_default_scope(scope)
    dataset = dict(type='CIFAR10' if name == 'CIFAR' else 'Any', pipeline=pipeline)
    cfg = dict(test_dataloader=dict(dataset=dataset))
    model = MODELS.build(preprocessor)
    run = make_pipeline(cfg)
    return lambda image: model(pseudo_collate([run(image)])), describe_preprocessing(dataset_of_test(cfg), model)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('library', ['installed', 'numpy'])
@pytest.mark.parametrize('name', CASES)
def test_tensor_and_sizes(name, library, monkeypatch):
    if library == 'numpy':
        monkeypatch.setattr(mmgdrq_runtime.preprocessing, 'installed', lambda name: None)
    run, spec = both(name)

    @given(st.integers(9, 150), st.integers(9, 150))
    def check(height, width):
        source = image(height, width)
        expected = run(source)
        tensor, info = prepare(source, spec)
        assert np.array_equal(tensor, expected['inputs'][0].numpy())
        meta = expected['data_samples'][0].metainfo
        assert info.shape == meta['ori_shape']
        assert info.input_shape == tuple(meta['img_shape'])
        assert info.scale_factor == meta.get('scale_factor', (1.0, 1.0))
        if 'img_padding_size' in meta:
            _, right, _, below = meta['img_padding_size']
            assert info.tensor_shape == (info.input_shape[0] + below, info.input_shape[1] + right)

    check()


def test_the_scale_factor_is_that_of_each_side():
    """An image of 640x427 becomes 1199x800: the two factors differ, and differ from the scale that was asked."""
    step = dict(type='resize', scale=[1333, 800], keep_ratio=True, library='cv2', interpolation='bilinear')
    spec = dict(steps=[step], reverse_channels=False, mean=None, std=None, pad_size=None, pad_divisor=1, pad_value=0)
    tensor, info = prepare(image(427, 640), spec)
    assert tensor.shape == (3, 800, 1199)
    assert info.scale_factor == (1199 / 640, 800 / 427)
