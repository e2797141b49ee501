# FCN, VGG-16, Cityscapes: 2-bit weights, 4-bit inputs, fine-tuned from the float baseline beside it.
_base_ = './fcn_vgg16_cityscapes.py'

custom_imports = dict(imports=['mmpretrain.models', 'mmgdrq'], allow_failed_imports=False)
custom_hooks = [
    dict(
        type='mmgdrq.GDRQHook',
        weight=dict(bits=2),
        activation=dict(bits=4),
        stages=dict(reshape=0, quantize=4000, by_epoch=False),
    )
]
model = dict(backbone=dict(init_cfg=None))
optim_wrapper = dict(optimizer=dict(lr=0.001))
load_from = 'work_dirs/fcn_vgg16_cityscapes/iter_80000.pth'
