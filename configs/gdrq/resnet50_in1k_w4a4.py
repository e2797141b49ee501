# ResNet-50, ImageNet: 4-bit weights, 4-bit inputs, fine-tuned from the float weights of mmpretrain.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', '../_base_/gdrq/w4a4.py']

optim_wrapper = dict(optimizer=dict(lr=0.01))
load_from = 'https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth'
