"""The types of a config are known before anything is built; real configs pass."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

from mmgdrq.errors import CheckpointError
from mmgdrq.openmmlab.deployed.config_types import check_types

CONFIGS = Path(__file__).resolve().parents[3] / 'configs/gdrq'
FILE = Path('config.py')
ZOOS = {
    'mmdet': ['retinanet/retinanet_r50_fpn_1x_coco.py', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'],
    'mmseg': ['pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'],
    'mmpretrain': ['vision_transformer/vit-base-p16_64xb64_in1k.py', 'resnet/resnet50_8xb32_in1k.py'],
}


@pytest.mark.parametrize(('scope', 'name'), [(scope, name) for scope, names in ZOOS.items() for name in names])
def test_configs_of_the_zoos(scope, name):
    """With batch augmentations, NMS and RoI layers, which lie in no registry of mmengine."""
    package = pytest.importorskip(scope)
    cfg = Config.fromfile(Path(package.__file__).parent / '.mim/configs' / name)
    check_types([cfg.model, cfg.test_dataloader.dataset.pipeline], scope, FILE)


def test_a_path_of_a_registered_class():
    check_types(dict(type='mmengine.model.base_model.data_preprocessor.ImgDataPreprocessor'), 'mmengine', FILE)
    with pytest.raises(CheckpointError, match=r"config\.py: type 'mmengine\.runner\.Runner\.from_cfg'"):
        check_types(dict(type='mmengine.runner.Runner.from_cfg'), 'mmengine', FILE)


@pytest.mark.parametrize(
    'part',
    [
        dict(type='os.system'),
        dict(a=[dict(b=(dict(type='os.system'),))]),
        dict(type='mmgdrq.Quantized', base_type='os.system'),
        dict(nms=dict(type='os.system')),
        dict(type='nms'),
        dict(type='mmdet.nothing_of_it'),
    ],
    ids=str,
)
def test_what_no_registry_knows_is_refused(part):
    with pytest.raises(CheckpointError, match=r'is not a registered class .* Import the module that registers it'):
        check_types(part, 'mmengine', FILE)


def test_a_class_of_the_user_is_known_when_it_is_registered():
    part = dict(backbone=dict(type='OnlyOfThisTest'))
    with pytest.raises(CheckpointError, match="'OnlyOfThisTest'"):
        check_types(part, 'mmdet', FILE)
    MODELS.register_module(name='OnlyOfThisTest', module=dict)
    try:
        check_types(part, 'mmdet', FILE)
    finally:
        MODELS.module_dict.pop('OnlyOfThisTest')
