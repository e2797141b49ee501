# Faster R-CNN, VGG-16: 4-bit weights, 4-bit inputs, fine-tuned from the float baseline beside it.
_base_ = './faster_rcnn_vgg16.py'

custom_imports = dict(imports=['mmpretrain.models', 'mmgdrq'], allow_failed_imports=False)
custom_hooks = [
    dict(
        type='mmgdrq.GDRQHook',
        weight=dict(bits=4),
        activation=dict(bits=4),
    )
]
model = dict(backbone=dict(init_cfg=None))
optim_wrapper = dict(optimizer=dict(lr=0.002))
load_from = 'work_dirs/faster_rcnn_vgg16/epoch_12.pth'
