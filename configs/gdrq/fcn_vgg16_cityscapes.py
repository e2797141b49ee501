# FCN on VGG-16 with BN, Cityscapes: the float baseline, from ImageNet weights of mmpretrain.
_base_ = 'mmseg::fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py'

custom_imports = dict(imports=['mmpretrain.models'], allow_failed_imports=False)
float_weights = (
    'https://download.openmmlab.com/mmclassification/v0/vgg/vgg16_bn_batch256_imagenet_20210208-7e55cd29.pth'
)
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VGG',
        depth=16,
        out_indices=(2, 3),  # strides 8 and 16
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint=float_weights, prefix='backbone'),
    ),
    decode_head=dict(in_channels=512, in_index=1, channels=256),
    auxiliary_head=dict(in_channels=256, in_index=0, channels=128),
)
