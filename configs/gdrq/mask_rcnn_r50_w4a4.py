# Mask R-CNN, ResNet-50: 4-bit weights, 4-bit inputs, fine-tuned from the float weights of mmdet.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '../_base_/gdrq/w4a4.py']

# rounding moves the statistics of every layer: the stem is trained too, and BN follows
model = dict(backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=None))
optim_wrapper = dict(optimizer=dict(lr=0.002))
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r50_fpn_1x_coco/'
    'mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth'
)
