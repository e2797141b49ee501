# ResNet-18, ImageNet: 2-bit weights, 4-bit inputs, fine-tuned from the float weights of mmpretrain.
_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py', '../_base_/gdrq/w2a4.py']

optim_wrapper = dict(optimizer=dict(lr=0.01))
load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth'
