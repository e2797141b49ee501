"""What prepares the images of an application: the steps of the config's test data set."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from mmgdrq.errors import CheckpointError, InputError
from mmgdrq.openmmlab.deployed.image_pipeline import make_pipeline

CONFIGS = Path(__file__).resolve().parents[3] / 'configs/gdrq'
PACK = dict(type='PackInputs')
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path):
    cv2.imwrite(str(tmp_path / 'image.png'), IMAGE)
    return tmp_path / 'image.png'


@pytest.mark.parametrize('name', ['vgg16bn_cifar10_w2a4', 'resnet18_cifar10_w2a4'])
def test_a_data_set_that_decodes_its_images_itself(name, file):
    """CIFAR-10 hands RGB arrays to a pipeline that only packs them."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope(cfg.default_scope)
    expected = Compose(cfg.test_dataloader.dataset.pipeline)(dict(img=IMAGE[..., ::-1], gt_label=0))
    run = make_pipeline(cfg)
    for image in (IMAGE, file, str(file)):
        assert torch.equal(run(image)['inputs'], expected['inputs'])
    with pytest.raises(InputError, match=r'test_image_pipeline\.py cannot be read as an image'):
        run(__file__)


def test_other_data_sets_without_a_loading_step_get_what_cv2_reads(file):
    init_default_scope('mmpretrain')
    run = make_pipeline(
        Config(dict(test_dataloader=dict(dataset=dict(type='ToyData', pipeline=[dict(type='PackInputs')]))))
    )
    assert torch.equal(run(file)['inputs'], torch.from_numpy(IMAGE).permute(2, 0, 1))


@pytest.mark.parametrize('wrapper', ['ConcatDataset', 'RepeatDataset', 'both'])
def test_wrapped_data_sets(wrapper, file):
    cfg = Config.fromfile(CONFIGS / 'resnet18_digits.py')
    init_default_scope(cfg.default_scope)
    expected = make_pipeline(cfg)(file)['inputs']
    dataset = cfg.test_dataloader.dataset
    if wrapper != 'RepeatDataset':
        other = dict(dataset, pipeline=[])
        dataset = dict(type='ConcatDataset', datasets=[dataset, other])
    if wrapper != 'ConcatDataset':
        dataset = dict(type='RepeatDataset', times=1, dataset=dataset)
    cfg.test_dataloader.dataset = dataset
    assert torch.equal(make_pipeline(cfg)(file)['inputs'], expected)


@pytest.mark.parametrize('loader', [None, {}, dict(dataset=dict(type='ToyData'))])
def test_a_config_without_a_pipeline(loader):
    with pytest.raises(CheckpointError, match='no test_dataloader with a pipeline'):
        make_pipeline(dict(test_dataloader=loader))


GRAY_IMAGE = np.random.default_rng(1).integers(0, 256, (20, 24), dtype=np.uint8)
GRAY_CONFIGS = {
    'a loading step': dict(
        pipeline=[dict(type='LoadImageFromFile', color_type='grayscale'), dict(type='Resize', scale=16), PACK]
    ),
    'MNIST': dict(type='MNIST', pipeline=[dict(type='Resize', scale=16), PACK]),
}


@pytest.mark.parametrize('name', GRAY_CONFIGS)
def test_gray_images(tmp_path, name):
    """Files and arrays give what the config's own steps make of an image in gray."""
    init_default_scope('mmpretrain')
    dataset = GRAY_CONFIGS[name]
    run = make_pipeline(dict(test_dataloader=dict(dataset=dataset)))
    expected = cv2.resize(GRAY_IMAGE, (16, 16), interpolation=cv2.INTER_LINEAR)
    cv2.imwrite(str(tmp_path / 'gray.png'), GRAY_IMAGE)
    for image in (tmp_path / 'gray.png', GRAY_IMAGE, GRAY_IMAGE[..., None], np.repeat(GRAY_IMAGE[..., None], 3, 2)):
        found = run(image)['inputs']
        assert found.shape == (1, 16, 16)
        assert np.array_equal(found[0].numpy(), expected)


def test_colors_become_gray_as_the_loading_step_does_it(tmp_path):
    init_default_scope('mmpretrain')
    run = make_pipeline(dict(test_dataloader=dict(dataset=GRAY_CONFIGS['a loading step'])))
    cv2.imwrite(str(tmp_path / 'color.png'), IMAGE)
    found, expected = (run(image)['inputs'].int() for image in (IMAGE, tmp_path / 'color.png'))
    assert (found - expected).abs().max() <= 1, 'decoders of files round otherwise'
    assert expected.float().std() > 10


@pytest.mark.parametrize(
    'array', [GRAY_IMAGE, GRAY_IMAGE[..., None], np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_arrays_that_a_color_pipeline_refuses(array):
    init_default_scope('mmpretrain')
    run = make_pipeline(dict(test_dataloader=dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), PACK]))))
    with pytest.raises(InputError, match=r'expected \(H, W, 3\), uint8, BGR, as cv2\.imread gives it$'):
        run(array)


@pytest.mark.parametrize('array', [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4)), np.zeros(4, np.uint8)])
def test_arrays_that_a_gray_pipeline_refuses(array):
    init_default_scope('mmpretrain')
    run = make_pipeline(dict(test_dataloader=dict(dataset=GRAY_CONFIGS['MNIST'])))
    with pytest.raises(InputError, match=r'expected .* or \(H, W\) in gray'):
        run(array)
