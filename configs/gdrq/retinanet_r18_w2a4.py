# RetinaNet, ResNet-18: 2-bit weights, 4-bit inputs, fine-tuned from the float weights of mmdet.
_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '../_base_/gdrq/w2a4.py']

# the head has no BN and is shared over levels: learned input ranges suit it better, which only the builder can make;
# rounding moves the statistics of every layer: the stem is trained too, and BN follows
model = dict(
    type='mmgdrq.Quantized',
    base_type='RetinaNet',
    quant=dict(weight=dict(bits=2), activation=dict(bits=4, range='learned')),
    backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=None),
)
custom_hooks = [dict(type='mmgdrq.GDRQHook', stages=dict(reshape=0, quantize=1))]
optim_wrapper = dict(optimizer=dict(lr=0.001))
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r18_fpn_1x_coco/'
    'retinanet_r18_fpn_1x_coco_20220407_171055-614fd399.pth'
)
