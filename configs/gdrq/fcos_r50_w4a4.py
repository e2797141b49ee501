# FCOS, ResNet-50: 4-bit weights, 4-bit inputs, fine-tuned from the float weights of mmdet.
_base_ = ['mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', '../_base_/gdrq/w4a4.py']

# rounding moves the statistics of every layer: the stem is trained too, and BN follows
model = dict(backbone=dict(frozen_stages=-1, norm_cfg=dict(requires_grad=True), norm_eval=False, init_cfg=None))
optim_wrapper = dict(optimizer=dict(lr=0.001))
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r50_caffe_fpn_gn-head_1x_coco/'
    'fcos_r50_caffe_fpn_gn-head_1x_coco-821213aa.pth'
)
