# VGG-16 with BN, CIFAR-10, one linear layer after global pooling: the float baseline, from scratch.
_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'

model = dict(
    backbone=dict(_delete_=True, type='VGG', depth=16, norm_cfg=dict(type='BN')),
    head=dict(in_channels=512),
)
optim_wrapper = dict(optimizer=dict(lr=0.05))
