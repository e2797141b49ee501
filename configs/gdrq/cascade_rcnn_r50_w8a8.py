# Cascade R-CNN, ResNet-50: 8-bit weights, 8-bit inputs, fine-tuned from the float weights of mmdet.
_base_ = ['mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', '../_base_/gdrq/w8a8.py']

# rounding moves the statistics of every layer: the stem is trained too, and BN follows
model = dict(backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=None))
optim_wrapper = dict(optimizer=dict(lr=0.002))
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco/'
    'cascade_rcnn_r50_fpn_1x_coco_20200316-3dc56deb.pth'
)
