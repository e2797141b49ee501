# RetinaNet, ResNet-18: 2-bit weights, 4-bit inputs, fine-tuned from the float weights of mmdet.
_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '../_base_/gdrq/w2a4.py']

# rounding moves the statistics of every layer: the stem is trained too, and BN follows
model = dict(backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=None))
optim_wrapper = dict(optimizer=dict(lr=0.001))
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r18_fpn_1x_coco/'
    'retinanet_r18_fpn_1x_coco_20220407_171055-614fd399.pth'
)
