"""The layers at 8 bits: what reads the image, what predicts, what is frozen."""

import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations
from torchvision.models import get_model

import mmgdrq
from mmgdrq.planning.prediction_layers import is_prediction, prediction_layers
from tests.helpers.plans import at_eight, classifier, conv, faster_rcnn, retina, rows, segmentor, tree


@pytest.mark.parametrize(
    ('build', 'at_8_bits'),
    [
        (classifier, {'backbone.conv1', 'head.fc'}),
        (retina, {'backbone.conv1', 'bbox_head.retina_cls', 'bbox_head.retina_reg'}),
        (
            faster_rcnn,
            {
                'backbone.conv1',
                'rpn_head.rpn_cls',
                'rpn_head.rpn_reg',
                'roi_head.bbox_head.fc_cls',
                'roi_head.bbox_head.fc_reg',
                'roi_head.mask_head.conv_logits',
            },
        ),
        (segmentor, {'backbone.stem.0', 'decode_head.conv_seg', 'auxiliary_head.conv_seg'}),
    ],
)
def test_default_policy(build, at_8_bits):
    model = build()
    assert at_eight(model) == at_8_bits
    for name, row in rows(model, weight=dict(bits=2), activation=dict(bits=4)).items():
        assert (row.weight.bits, row.activation.bits) == ((8, 8) if name in at_8_bits else (2, 4))
        assert row.reason == {True: 'reads the image (by channels)', False: 'prediction layer (by name)'}[
            name.startswith('backbone')
        ] * (name in at_8_bits)


def test_a_plain_net_has_its_first_and_last_layer_at_eight_bits():
    net = nn.Sequential(nn.Linear(20, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    assert at_eight(net) == {'0', '2'}


def test_first_and_last_layers_keep_what_is_above_8_bits():
    model = rows(classifier(), weight=dict(bits=32), activation=dict(bits=4))
    assert model['backbone.conv1'].weight.bits == 32
    assert model['backbone.conv1'].activation.bits == 8


@pytest.mark.parametrize(
    ('name', 'prediction'),
    [
        ('bbox_head.fc_cls', True),
        ('head.fc_cls', True),
        ('bbox_head.conv_centerness', True),
        ('bbox_head.heatmap_head.1', False),
        ('backbone.fc_cls', False),
        ('bbox_head.cls_convs.1.conv', False),
        ('bbox_head.reg_convs.0', False),
        ('bbox_head.multi_level_conv_cls.0', True),
        ('decode_head.conv_seg', True),
        ('decode_head.convs.0.conv', False),
        ('bbox_head.bbox_pred', True),
        ('bbox_head.reppoints_cls_conv', False),
        ('bbox_head.reppoints_cls_out', True),
        ('head.layers.pre_logits', False),
        ('head.layers.head', True),
        ('bbox_head.cls_convs.0.conv.conv_offset', False),
        ('decode_head.pixel_decoder.encoder.layers.0.self_attn.sampling_offsets', False),
        ('head.conv_cls_head', True),
        ('head.head_dist.linear', True),
        ('head.fc', False),
    ],
)
def test_names_of_predictions(name, prediction):
    assert is_prediction(name) is prediction


def test_prediction_layers_of_branches():
    """DETR has one a decoder layer, CenterNet and mask transformers the last of a short sequence, SSD one a level."""

    def mlp():
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    detr = tree(
        backbone=tree(conv1=conv(3, 8), layer1=conv(8, 8)),
        bbox_head=tree(
            cls_branches=nn.ModuleList([nn.Linear(8, 9), nn.Linear(8, 9)]), reg_branches=nn.ModuleList([mlp(), mlp()])
        ),
    )
    assert at_eight(detr) == {
        'backbone.conv1',
        'bbox_head.cls_branches.0',
        'bbox_head.cls_branches.1',
        'bbox_head.reg_branches.0.2',
        'bbox_head.reg_branches.1.2',
    }
    former = tree(backbone=tree(conv1=conv(3, 8)), decode_head=tree(cls_embed=nn.Linear(8, 9), mask_embed=mlp()))
    assert at_eight(former) == {'backbone.conv1', 'decode_head.cls_embed', 'decode_head.mask_embed.2'}
    levels = [nn.Sequential(conv(8, 8), conv(8, 9)) for _ in range(2)]
    ssd = tree(
        backbone=tree(conv1=conv(3, 8)),
        bbox_head=tree(cls_convs=nn.ModuleList(levels), reg_convs=nn.ModuleList([nn.Sequential(conv(8, 4))])),
    )
    expected = {'bbox_head.cls_convs.0.1', 'bbox_head.cls_convs.1.1', 'bbox_head.reg_convs.0.0'}
    assert at_eight(ssd) == {'backbone.conv1', *expected}


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        ('bbox_head.aux_cls_branches.0 bbox_head.aux_reg_branches.0.0 bbox_head.aux_reg_branches.0.2', {0, 2}),
        ('neck.1.dyhead_blocks.0.spatial_conv_offset bbox_head.atss_cls bbox_head.cls_convs.0.conv', {1}),
        ('panoptic_head.pixel_decoder.output_convs.0.conv panoptic_head.pixel_decoder.mask_feature', {1}),
        ('decode_head.kernel_update_head.0.fc_mask decode_head.kernel_update_head.0.mask_fcs.0', {0}),
        ('bbox_head.rtm_kernel.0 bbox_head.mask_head.stacked_convs.0.conv bbox_head.mask_head.projection', {0, 2}),
        ('bbox_head.tl_off.0.0.conv bbox_head.tl_off.0.1.conv bbox_head.tl_dcn_offset.0.conv', {1}),
        ('backbone.layers.0.fc neck.head', {1}),
        ('backbone.layers.0.fc neck.fc', {1}),
        ('conv_stem blocks.0.0.conv_dw conv_head classifier', {3}),
        ('backbone.conv1 classifier.0 classifier.3 aux_classifier.0 aux_classifier.3', {2, 4}),
        ('conv1 aux1.conv aux1.fc1 aux1.fc2 fc', {3, 4}),
        ('features.0 classifier.0 classifier.3', {2}),
        ('backbone.0 head.0 head.2', {2}),
    ],
)
def test_prediction_layers_by_their_names(names, expected):
    names = names.split()
    assert set(prediction_layers(dict.fromkeys(names))) == {names[i] for i in expected}


TORCHVISION = {
    'deeplabv3_mobilenet_v3_large': {'classifier.4', 'aux_classifier.4'},
    'maskrcnn_resnet50_fpn_v2': {
        'rpn.head.cls_logits',
        'rpn.head.bbox_pred',
        'roi_heads.box_predictor.cls_score',
        'roi_heads.box_predictor.bbox_pred',
        'roi_heads.mask_predictor.mask_fcn_logits',
    },
    'keypointrcnn_resnet50_fpn': {
        'rpn.head.cls_logits',
        'rpn.head.bbox_pred',
        'roi_heads.box_predictor.cls_score',
        'roi_heads.box_predictor.bbox_pred',
        'roi_heads.keypoint_predictor.kps_score_lowres',
    },
    'ssdlite320_mobilenet_v3_large': {
        f'head.{task}_head.module_list.{i}.1' for task in ('classification', 'regression') for i in range(6)
    },
}


@pytest.mark.parametrize('name', TORCHVISION)
def test_prediction_layers_of_torchvision(name):
    aux = dict(aux_loss=True) if 'deeplab' in name else {}
    with torch.device('meta'):
        model = get_model(name, weights=None, weights_backbone=None, **aux)
    found = {row.name for row in mmgdrq.plan(model) if row.reason.startswith('prediction layer')}
    assert found == TORCHVISION[name]


def test_a_momentum_encoder_is_frozen_and_predicts_nothing():
    def encoder():
        return nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 4))

    model = nn.ModuleDict(
        dict(backbone=nn.Sequential(conv(3, 8), conv(8, 8)), neck=nn.Linear(8, 4), encoder_k=encoder())
    )
    model['encoder_k'].requires_grad_(False)
    found = rows(model)
    assert found['neck'].reason == 'prediction layer (by name)'
    assert found['encoder_k.2'].reason.startswith('frozen')


@pytest.mark.parametrize('norm', [parametrizations.spectral_norm, utils.spectral_norm])
def test_a_layer_with_a_spectral_norm_is_frozen_where_its_weight_is(norm):
    net = nn.Sequential(conv(3, 8), norm(conv(8, 8)), norm(conv(8, 8)), conv(8, 2))
    net[2].requires_grad_(False)
    assert at_eight(net) == {'0', '2', '3'}
    assert rows(net)['2'].reason.startswith('frozen')


def test_a_frozen_stage_beside_stages_with_its_layer_names_is_no_teacher():
    def stage(inputs, outputs):
        return nn.Sequential(conv(inputs, outputs), conv(outputs, outputs))

    def deconv_stage():
        return nn.Sequential(nn.ConvTranspose2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3))

    net = tree(conv1=conv(3, 8), layer1=stage(8, 8), layer2=stage(8, 16), up=deconv_stage(), fc=nn.Linear(16, 2))
    net.layer1.requires_grad_(False)
    assert at_eight(net) == {'conv1', 'layer1.0', 'layer1.1', 'fc'}
    net.layer2.requires_grad_(False)
    assert at_eight(net) == {'conv1', 'layer1.0', 'layer1.1', 'layer2.0', 'layer2.1', 'fc'}


def test_a_frozen_block_beside_an_equal_one_is_no_teacher():
    def block():
        return nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8))

    net = tree(stem=conv(3, 8), block1=block(), block2=block(), fc=nn.Linear(8, 2))
    net.block1.requires_grad_(False)
    assert at_eight(net) == {'stem', 'block1.0', 'block1.3', 'fc'}


def test_only_the_first_layer_has_8_bits_where_the_input_is_no_image():
    model = tree(
        backbone=tree(conv1=conv(16, 16), layer1=nn.Sequential(conv(16, 16), conv(16, 16))),
        head=tree(fc_cls=nn.Linear(16, 10)),
    )
    assert at_eight(model) == {'backbone.conv1', 'head.fc_cls'}


def test_every_convolution_that_reads_the_image_has_8_bits():
    model = tree(
        backbone=tree(fine=nn.Sequential(conv(3, 8), conv(8, 8)), coarse=nn.Sequential(conv(3, 8), conv(8, 8))),
        head=tree(fc_cls=nn.Linear(16, 10)),
    )
    assert at_eight(model) == {'backbone.fine.0', 'backbone.coarse.0', 'head.fc_cls'}
