# ResNet-50, CIFAR-10: 4-bit weights, 4-bit inputs, fine-tuned from the float weights of mmpretrain.
_base_ = ['mmpretrain::resnet/resnet50_8xb16_cifar10.py', '../_base_/gdrq/w4a4.py']

optim_wrapper = dict(optimizer=dict(lr=0.01))
load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_b16x8_cifar10_20210528-f54bfad9.pth'
