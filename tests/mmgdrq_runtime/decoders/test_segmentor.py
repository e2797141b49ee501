"""Label maps agree with mmseg, and classes with mmpretrain."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmseg.structures import SegDataSample

from mmgdrq.openmmlab.pipeline_json import as_json
from mmgdrq.openmmlab.pipeline_json.decoder import describe_decoder
from mmgdrq_runtime.decoders import DECODERS
from mmgdrq_runtime.decoders.segmentor import slide
from mmgdrq_runtime.pipeline import DECODER
from mmgdrq_runtime.preprocessing import ImageInfo

ONE_OUTPUT = {'onnxruntime': {'dense': {'tree': '[1, {"type": null, "context": null, "children_spec": []}]'}}}
"""Graphs of a manifest: one tensor."""


def model_of(align_corners: bool, classes: int = 5, **test):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    head = dict(in_channels=32, in_index=3, channels=4, num_classes=max(classes, 2), num_convs=1, concat_input=False)
    if classes == 1:
        head.update(out_channels=1, threshold=0.4)
    with torch.no_grad():
        return MODELS.build(
            dict(
                type='EncoderDecoder',
                backbone=dict(type='ResNetV1c', depth=18, base_channels=4, stem_channels=4),
                decode_head=dict(type='FCNHead', align_corners=align_corners, norm_cfg=None, **head),
                test_cfg=ConfigDict({'mode': 'whole', **test}),
            )
        ).eval()


def expected(model, tensor: np.ndarray, info: ImageInfo) -> np.ndarray:
    sample = SegDataSample(
        metainfo=dict(
            ori_shape=info.shape,
            img_shape=info.input_shape,
            pad_shape=info.tensor_shape,
            img_padding_size=(
                0,
                info.tensor_shape[1] - info.input_shape[1],
                0,
                info.tensor_shape[0] - info.input_shape[0],
            ),
        )
    )
    with torch.no_grad():
        return model.predict(torch.from_numpy(tensor)[None], [sample])[0].pred_sem_seg.data[0].numpy()


def found(model, tensor: np.ndarray, info: ImageInfo) -> np.ndarray:
    spec = as_json(describe_decoder(model, ONE_OUTPUT))
    DECODER(spec, 'decoder')

    def run(x):
        with torch.no_grad():
            return [model.decode_head(model.extract_feat(torch.from_numpy(np.ascontiguousarray(x)))).numpy()]

    logits = slide(run, tensor, spec) if spec['window'] else run(tensor[None])[0][0]
    return DECODERS['segmentor']([logits], info, spec, {}).label_map


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert (found != expected).mean() < 2e-4  # where two classes have one score but for the last bits


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('classes', [5, 1])
def test_whole_images(align_corners, classes):
    model = model_of(align_corners, classes)

    @examples(max_examples=12)
    @given(st.integers(33, 120), st.integers(33, 120), st.integers(1, 90), st.integers(1, 90), st.integers(0, 20))
    def check(height, width, rows, columns, padding):
        tensor = np.random.default_rng(height).normal(size=(3, height, width)).astype(np.float32)
        info = ImageInfo((rows, columns), (height - padding, width - padding // 2), (1.0, 1.0), (height, width))
        assert_same(found(model, tensor, info), expected(model, tensor, info))

    check()


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('stride', [(20, 24), (40, 48), (64, 64)])
def test_windows(align_corners, stride):
    model = model_of(align_corners, mode='slide', crop_size=(40, 48), stride=stride)
    for height, width in ((64, 96), (40, 48), (100, 61), (39, 50)):
        tensor = np.random.default_rng(height).normal(size=(3, height, width)).astype(np.float32)
        info = ImageInfo((50, 70), (height, width), (1.0, 1.0), (height, width))
        if stride == (64, 64) and (height > 64 or width > 64):
            continue  # windows would leave gaps
        assert_same(found(model, tensor, info), expected(model, tensor, info))


@given(st.integers(0, 10**6), st.integers(2, 50), st.sampled_from([0.1, 10.0]))
def test_classes_are_those_of_mmpretrain(seed, classes, spread):
    from mmpretrain.models.heads import ClsHead

    logits = np.random.default_rng(seed).normal(0, spread, classes).astype(np.float32)
    expected = ClsHead()._get_predictions(torch.from_numpy(logits)[None], None)[0]
    result = DECODERS['classifier']([logits], ImageInfo((1, 1), (1, 1)), {}, {})
    assert np.abs(result.class_scores - expected.pred_score.numpy()).max() < 1e-6
    assert result.label == expected.pred_label.item()


def test_of_equal_classes_the_first_is_the_label():
    result = DECODERS['classifier']([np.float32([1, 3, 3, 0])], ImageInfo((1, 1), (1, 1)), {}, {})
    assert result.label == 1
