# ResNet-18, CIFAR-10: 4-bit weights, 4-bit inputs, fine-tuned from the float weights of mmpretrain.
_base_ = ['mmpretrain::resnet/resnet18_8xb16_cifar10.py', '../_base_/gdrq/w4a4.py']

optim_wrapper = dict(optimizer=dict(lr=0.01))
load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet18_b16x8_cifar10_20210528-bd6371c8.pth'
