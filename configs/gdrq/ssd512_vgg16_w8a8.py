# SSD512, VGG-16: 8-bit weights, 8-bit inputs, fine-tuned from the float weights of mmdet.
_base_ = 'mmdet::ssd/ssd512_coco.py'

custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)
custom_hooks = [
    dict(type='NumClassCheckHook'),
    dict(type='CheckInvalidLossHook', interval=50, priority='VERY_LOW'),
    dict(
        type='mmgdrq.GDRQHook',
        weight=dict(bits=8),
        activation=dict(bits=8),
    ),
]

# mmdet's own SSDHead does not predict in mmdet 3.3.0
model = dict(backbone=dict(init_cfg=None), bbox_head=dict(type='mmgdrq.SSDHead'))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/ssd/ssd512_coco/ssd512_coco_20210803_022849-0a47a1ca.pth'
