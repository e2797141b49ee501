# Faster R-CNN, ResNet-50 with FPN, on COCO: 2-bit weights, 4-bit activations, fine-tuned from mmdet's float model.
# One epoch of Scale-Clip without rounding, then rounding. Fine-tuning starts at a tenth of the float learning rate.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']

custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)
custom_hooks = [
    dict(
        type='mmgdrq.GDRQHook',
        weight=dict(bits=2),
        activation=dict(bits=4),
        stages=dict(reshape=0, quantize=1),
    )
]

# Rounding moves the statistics of every layer, so the stem is trained and BN follows. The float weights come from
# load_from, all of them.
model = dict(backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=None))
load_from = (
    'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/'
    'faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth'
)
optim_wrapper = dict(optimizer=dict(lr=0.002))
