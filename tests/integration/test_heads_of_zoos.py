"""The prediction layers of the zoos' heads, and nothing else of them, have 8 bits."""

import pytest
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmgdrq

ANCHORS = dict(type='AnchorGenerator', ratios=[1.0], scales=[8], strides=[8, 16])
SOLO = dict(
    scale_ranges=((1, 96), (48, 192)),
    stacked_convs=1,
    norm_cfg=None,
    loss_mask=dict(type='DiceLoss', use_sigmoid=True),
    loss_cls=dict(type='FocalLoss', use_sigmoid=True),
)
REAL_HEADS = {
    'CornerHead': (
        'bbox_head',
        dict(type='CornerHead', num_classes=3, in_channels=8, num_feat_levels=2, corner_emb_channels=1),
        {f'{c}_{part}.{i}.1.conv' for c in ('tl', 'br') for part in ('heat', 'off', 'emb') for i in (0, 1)},
    ),
    'CentripetalHead': (
        'bbox_head',
        dict(type='CentripetalHead', num_classes=3, in_channels=8, num_feat_levels=1, corner_emb_channels=0),
        {
            f'{c}_{part}.0.1.conv'
            for c in ('tl', 'br')
            for part in ('heat', 'off', 'guiding_shift', 'centripetal_shift')
        },
    ),
    'CondInstBboxHead': (
        'bbox_head',
        dict(type='CondInstBboxHead', num_classes=3, in_channels=8, feat_channels=8, num_params=9, norm_cfg=None),
        {'conv_cls', 'conv_reg', 'conv_centerness', 'controller'},
    ),
    'DABDETRHead': (
        'bbox_head',
        dict(type='DABDETRHead', num_classes=3, embed_dims=8, loss_cls=dict(type='FocalLoss', use_sigmoid=True)),
        {'fc_cls', 'fc_reg.layers.2'},
    ),
    'GridHead': (
        'roi_head.grid_head',
        dict(
            type='GridHead', in_channels=8, point_feat_channels=4, num_convs=1, norm_cfg=dict(type='GN', num_groups=9)
        ),
        {'deconv2'},
    ),
    'SOLOHead': (
        'mask_head',
        dict(type='SOLOHead', num_classes=3, in_channels=8, feat_channels=8, strides=(8, 16), num_grids=(4, 2), **SOLO),
        {'conv_cls', 'conv_mask_list.0', 'conv_mask_list.1'},
    ),
    'VFNetHead': (
        'bbox_head',
        dict(type='VFNetHead', num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1, norm_cfg=None),
        {'vfnet_cls', 'vfnet_reg', 'vfnet_reg_refine'},
    ),
    'TOODHead': (
        'bbox_head',
        dict(type='TOODHead', num_classes=3, in_channels=8, feat_channels=8, norm_cfg=None, anchor_generator=ANCHORS),
        {'tood_cls', 'tood_reg', 'cls_prob_module.2', 'reg_offset_module.2'},
    ),
    'DecoupledSOLOHead': (
        'mask_head',
        dict(
            type='DecoupledSOLOHead',
            num_classes=3,
            in_channels=8,
            feat_channels=8,
            strides=(8, 16),
            num_grids=(4, 2),
            **SOLO,
        ),
        {'conv_cls', *(f'conv_mask_list_{axis}.{i}' for axis in 'xy' for i in (0, 1))},
    ),
    'SOLOV2Head': (
        'mask_head',
        dict(
            type='SOLOV2Head',
            num_classes=3,
            in_channels=8,
            feat_channels=8,
            strides=(8, 16),
            num_grids=(4, 2),
            mask_feature_head=dict(
                feat_channels=8, start_level=0, end_level=1, out_channels=4, mask_stride=4, norm_cfg=None
            ),
            **SOLO,
        ),
        {'conv_cls', 'conv_kernel', 'mask_feature_head.conv_pred.conv'},
    ),
    'RepPointsHead': (
        'bbox_head',
        dict(type='RepPointsHead', num_classes=3, in_channels=8, feat_channels=8, point_feat_channels=8),
        {'reppoints_cls_out', 'reppoints_pts_init_out', 'reppoints_pts_refine_out'},
    ),
    'YOLACTProtonet': (
        'mask_head',
        dict(
            type='YOLACTProtonet',
            in_channels=8,
            proto_channels=(8, None, 4),
            proto_kernel_sizes=(3, -2, 1),
            num_classes=3,
            with_seg_branch=True,
        ),
        {'protonet.4', 'segm_branch.segm_conv'},
    ),
    'GlobalContextHead': (
        'roi_head.glbctx_head',
        dict(type='GlobalContextHead', num_convs=1, in_channels=8, conv_out_channels=8, num_classes=3),
        {'fc'},
    ),
    'EncHead': (
        'decode_head',
        dict(type='mmseg.EncHead', in_channels=[8], in_index=[0], channels=8, num_classes=3, num_codes=2),
        {'conv_seg', 'se_layer'},
    ),
    'SegmenterMaskTransformerHead': (
        'decode_head',
        dict(
            type='mmseg.SegmenterMaskTransformerHead',
            in_channels=8,
            channels=8,
            embed_dims=8,
            num_classes=3,
            num_layers=1,
            num_heads=2,
        ),
        {'patch_proj', 'classes_proj'},
    ),
    'FPNHead': (
        'decode_head',
        dict(
            type='mmseg.FPNHead',
            in_channels=[8, 8],
            in_index=[0, 1],
            feature_strides=[4, 8],
            channels=8,
            num_classes=3,
        ),
        {'conv_seg'},
    ),
    'DNLHead': (
        'decode_head',
        dict(type='mmseg.DNLHead', in_channels=8, channels=8, num_classes=3),
        {'conv_seg'},
    ),
    'DDRHead': (
        'decode_head',
        dict(type='mmseg.DDRHead', in_channels=8, channels=8, num_classes=3, norm_cfg=dict(type='BN')),
        {'conv_seg', 'aux_cls_seg'},
    ),
    'VisionTransformerClsHead': (
        'head',
        dict(type='mmpretrain.VisionTransformerClsHead', num_classes=3, in_channels=8, hidden_dim=8),
        {'layers.head'},
    ),
    'SSDHead': (
        'bbox_head',
        dict(
            type='SSDHead',
            num_classes=3,
            in_channels=(8, 8, 8),
            anchor_generator=dict(
                type='SSDAnchorGenerator',
                strides=[8, 16, 32],
                ratios=[[2], [2], [2]],
                min_sizes=[8, 16, 32],
                max_sizes=[16, 32, 64],
                input_size=64,
            ),
        ),
        {f'{part}_convs.{i}.0' for part in ('cls', 'reg') for i in range(3)},
    ),
}


@pytest.mark.parametrize('name', REAL_HEADS)
def test_every_prediction_of_real_heads_has_eight_bits(name):
    prefix, config, expected = REAL_HEADS[name]
    init_default_scope('mmdet')
    model = nn.ModuleDict(dict(backbone=nn.Conv2d(3, 8, 3)))
    parent = model
    for part in prefix.split('.')[:-1]:
        parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    parent.add_module(prefix.split('.')[-1], MODELS.build(config))
    found = {row.name for row in mmgdrq.plan(model) if row.weight.bits == 8} - {'backbone'}
    assert found == {f'{prefix}.{layer}' for layer in expected}
