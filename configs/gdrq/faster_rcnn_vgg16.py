# Faster R-CNN with FPN on VGG-16 with BN, COCO: the float baseline, from ImageNet weights of mmpretrain.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['mmpretrain.models'], allow_failed_imports=False)
float_weights = (
    'https://download.openmmlab.com/mmclassification/v0/vgg/vgg16_bn_batch256_imagenet_20210208-7e55cd29.pth'
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VGG',
        depth=16,
        out_indices=(1, 2, 3, 4),  # strides 4, 8, 16, 32
        norm_cfg=dict(type='BN'),
        init_cfg=dict(type='Pretrained', checkpoint=float_weights, prefix='backbone'),
    ),
    neck=dict(in_channels=[128, 256, 512, 512]),
)
