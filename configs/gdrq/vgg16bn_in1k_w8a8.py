# VGG-16-BN, ImageNet: 8-bit weights, 8-bit inputs, fine-tuned from the float weights of mmpretrain.
_base_ = ['mmpretrain::vgg/vgg16bn_8xb32_in1k.py', '../_base_/gdrq/w8a8.py']

optim_wrapper = dict(optimizer=dict(lr=0.001))
load_from = 'https://download.openmmlab.com/mmclassification/v0/vgg/vgg16_bn_batch256_imagenet_20210208-7e55cd29.pth'
