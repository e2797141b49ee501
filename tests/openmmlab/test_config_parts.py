"""What the parts of a config say, in every way that OpenMMLab writes them."""

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.model import PretrainedInit

from mmgdrq import GDRQHook
from mmgdrq.openmmlab.config_parts import class_name, without_weights


@pytest.mark.parametrize('kind', ['GDRQHook', 'mmgdrq.GDRQHook', 'mmgdrq.openmmlab.hooks.gdrq_hook.GDRQHook', GDRQHook])
def test_a_class_by_its_name(kind):
    assert class_name(kind) == 'GDRQHook'


def test_weights_go_wherever_they_lie():
    file = dict(type='Pretrained', checkpoint='url')
    config = dict(
        pretrained='url',
        teacher_ckpt='url',
        backbone=dict(init_cfg=file, depth=18),
        neck=dict(init_cfg=[file, dict(type='Xavier', layer='Conv2d')]),
        heads=[dict(init_cfg=dict(type=PretrainedInit, checkpoint='url')), dict(pretrained=True, sizes=(1, 2))],
        init_cfg=dict(type='Normal', layer='Linear', std=0.01),
    )
    expected = dict(
        pretrained=None,
        teacher_ckpt=None,
        backbone=dict(init_cfg=None, depth=18),
        neck=dict(init_cfg=[dict(type='Xavier', layer='Conv2d')]),
        heads=[dict(init_cfg=None), dict(pretrained=None, sizes=(1, 2))],
        init_cfg=dict(type='Normal', layer='Linear', std=0.01),
    )
    assert without_weights(config) == expected
    assert config['backbone']['init_cfg'] == file, 'the config itself stays'


def test_what_models_read_by_attribute_stays_so():
    config = without_weights(Config(dict(model=dict(test_cfg=dict(rpn=dict(nms_pre=5))))).model)
    assert isinstance(config, ConfigDict)
    assert config.test_cfg.rpn.nms_pre == 5
