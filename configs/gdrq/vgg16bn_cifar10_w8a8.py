# VGG-16-BN, CIFAR-10: 8-bit weights, 8-bit inputs, fine-tuned from the float baseline beside it.
_base_ = './vgg16bn_cifar10.py'

custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)
custom_hooks = [
    dict(
        type='mmgdrq.GDRQHook',
        weight=dict(bits=8),
        activation=dict(bits=8),
    )
]
optim_wrapper = dict(optimizer=dict(lr=0.005))
load_from = 'work_dirs/vgg16bn_cifar10/epoch_200.pth'
