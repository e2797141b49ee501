"""Prediction layers of heads that are known by their class: of other libraries, of stand-ins, of one's own."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model

import mmgdrq
from mmgdrq.errors import ConfigError
from mmgdrq.planning.known_heads import _HEADS
from tests.helpers.plans import conv, tree


@pytest.fixture
def table():
    """What a test registers is gone after it."""
    before = dict(_HEADS)
    yield
    _HEADS.clear()
    _HEADS.update(before)


def head(name: str, base: type = nn.Module, package: str = 'elsewhere', **children) -> nn.Module:
    """A module of a class of that name, as a package that is not installed has it."""
    built = type(name, (base,), {'__module__': f'{package}.heads'})()
    for key, child in children.items():
        built.add_module(key, child)
    return built


def predictions(model: nn.Module) -> dict[str, str]:
    """Layer -> what decided about it."""
    reasons = {row.name: row.reason for row in mmgdrq.plan(model)}
    return {name: reason for name, reason in reasons.items() if reason.startswith('prediction layer')}


def network(**parts) -> nn.Module:
    return tree(backbone=tree(conv1=conv(3, 8), conv2=conv(8, 8)), **parts)


def branches(count: int = 2) -> nn.ModuleList:
    """As of YOLOv8: a short sequence for each level, of which the last convolution predicts."""
    return nn.ModuleList(nn.Sequential(conv(8, 8), conv(8, 8), conv(8, 4)) for _ in range(count))


def mlp() -> nn.Module:
    return tree(layers=nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 4)]))


def by(entry: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, f'prediction layer ({entry})')


@pytest.mark.parametrize('entry', ['YOLOv8HeadModule', 'PPYOLOEHeadModule'])
def test_yolo_of_mmyolo(entry):
    """All branches of all levels, and no layer of their towers."""
    module = head(entry, package='mmyolo', cls_preds=branches(3), reg_preds=branches(3))
    model = network(bbox_head=tree(head_module=module))
    names = [f'bbox_head.head_module.{task}_preds.{level}.2' for task in ('cls', 'reg') for level in range(3)]
    assert predictions(model) == by(entry, *names)


def test_yolo_of_ultralytics():
    """Its fixed projection is no prediction layer, and its backbone and head are one sequence."""
    dfl = tree(conv=nn.Conv2d(16, 1, 1, bias=False).requires_grad_(False))
    dfl.conv.weight.data[:] = torch.arange(16.0).view(1, 16, 1, 1)
    detect = head('Detect', cv2=branches(), cv3=branches(), dfl=dfl)
    model = tree(model=nn.Sequential(conv(3, 8), conv(8, 8), detect))
    assert predictions(model) == by('Detect', *(f'model.2.cv{task}.{level}.2' for task in (2, 3) for level in (0, 1)))
    mmgdrq.quantize(model)
    assert type(dfl.conv) is nn.Conv2d, 'its numbers from 0 to 15 stay exact'


def test_axes_of_mmpose():
    model = network(head=head('RTMCCHead', final_layer=conv(8, 8), cls_x=nn.Linear(8, 4), cls_y=nn.Linear(8, 4)))
    assert predictions(model) == by('RTMCCHead', 'head.cls_x', 'head.cls_y')


@pytest.mark.parametrize('lists', [False, True])
def test_detr_of_other_code_bases(lists):
    """Their backbone stands behind their predictions."""
    classes, boxes = nn.Linear(8, 4), mlp()
    if lists:
        classes, boxes = nn.ModuleList([nn.Linear(8, 4)] * 2), nn.ModuleList([mlp(), mlp()])
    model = head('DeformableDETR' if lists else 'DETR', transformer=nn.Linear(8, 8), class_embed=classes)
    model.bbox_embed = boxes
    model.backbone = tree(conv1=conv(3, 8), conv2=conv(8, 8))
    expected = ['class_embed.0', 'bbox_embed.0.layers.1', 'bbox_embed.1.layers.1'] if lists else None
    expected = expected or ['class_embed', 'bbox_embed.layers.1']
    assert predictions(model) == by(type(model).__name__, *expected)


TORCHVISION = {
    'lraspp_mobilenet_v3_large': ({'classifier.low_classifier', 'classifier.high_classifier'}, 'LRASPPHead'),
    'retinanet_resnet50_fpn': (
        {'head.classification_head.cls_logits', 'head.regression_head.bbox_reg'},
        'RetinaNet.*Head',
    ),
    'fcos_resnet50_fpn': (
        {
            'head.classification_head.cls_logits',
            'head.regression_head.bbox_reg',
            'head.regression_head.bbox_ctrness',
        },
        'FCOS.*Head',
    ),
}


@pytest.mark.parametrize('name', TORCHVISION)
def test_models_of_torchvision(name):
    expected, entry = TORCHVISION[name]
    with torch.device('meta'):
        found = predictions(get_model(name, weights=None, weights_backbone=None))
    assert set(found) == expected
    assert all(reason.startswith('prediction layer (torchvision.') for reason in found.values()), entry


@pytest.mark.parametrize('name', ['resnet18', 'mobilenetv3_small_050', 'vit_tiny_patch16_224', 'crossvit_tiny_240'])
def test_models_of_timm(name):
    timm = pytest.importorskip('timm', reason='timm is not installed')
    with torch.device('meta'):
        model = timm.create_model(name)
    expected = {'crossvit_tiny_240': {'head.0', 'head.1'}, 'resnet18': {'fc'}, 'vit_tiny_patch16_224': {'head'}}
    assert set(predictions(model)) == expected.get(name, {'classifier'})


def test_heads_of_one_name_in_two_packages():
    def rpn(package, **children):
        return network(head=head('RPNHead', package=package, **children))

    ours = rpn('mmdet', rpn_conv=conv(8, 8), rpn_cls=conv(8, 3), rpn_reg=conv(8, 4))
    theirs = rpn('torchvision', conv=conv(8, 8), cls_logits=conv(8, 3), bbox_pred=conv(8, 4))
    assert predictions(ours) == by('RPNHead', 'head.rpn_cls', 'head.rpn_reg')
    assert predictions(theirs) == by('torchvision.RPNHead', 'head.cls_logits', 'head.bbox_pred')


def test_a_head_of_ones_own_and_its_subclass(table):
    class MyHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.answer, self.cls_score = nn.Linear(8, 4), nn.Linear(8, 8)

    class Finer(MyHead):
        pass

    for cls in (MyHead, Finer):
        model = network(head=cls(), tail=conv(8, 8))
        assert predictions(model) == {'head.cls_score': 'prediction layer (by name)'}
    mmgdrq.register_prediction_layers('MyHead', ['answer'])
    for cls in (MyHead, Finer):
        model = network(head=cls(), tail=conv(8, 8))
        assert predictions(model) == by('MyHead', 'head.answer')
    mmgdrq.register_prediction_layers('Finer', ['cls_*'])
    assert predictions(network(head=Finer())) == by('Finer', 'head.cls_score')


def test_an_entry_that_finds_nothing_leaves_it_to_the_names(table):
    mmgdrq.register_prediction_layers('Renamed', ['no_such_layer'])
    model = network(bbox_head=head('Renamed', convs=conv(8, 8), fc_cls=nn.Linear(8, 4)))
    assert predictions(model) == {'bbox_head.fc_cls': 'prediction layer (by name)'}


def test_a_head_twice_in_a_model_and_one_within_another():
    shared = head('RetinaHead', retina_cls=conv(8, 3), retina_reg=conv(8, 4))
    assert set(predictions(network(bbox_head=shared, again=shared))) == {'bbox_head.retina_cls', 'bbox_head.retina_reg'}
    inner = head('KernelUpdateHead', fc_mask=nn.Linear(8, 8), fc_last=nn.Linear(8, 8))
    outer = head('BaseDecodeHead', conv_seg=conv(8, 3), stages=nn.ModuleList([inner]))
    assert set(predictions(network(decode_head=outer))) == {'decode_head.conv_seg', 'decode_head.stages.0.fc_mask'}


@pytest.mark.parametrize(('name', 'layers'), [('', ['a']), (3, ['a']), ('Head', 'fc'), ('Head', []), ('Head', [1])])
def test_wrong_entries(name, layers):
    with pytest.raises(ConfigError, match='register_prediction_layers: '):
        mmgdrq.register_prediction_layers(name, layers)
