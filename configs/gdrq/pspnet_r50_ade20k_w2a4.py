# PSPNet, ResNet-50, ADE20K: 2-bit weights, 4-bit inputs, fine-tuned from the float weights of mmseg.
_base_ = ['mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py', '../_base_/gdrq/w2a4_by_iter.py']

model = dict(pretrained=None)
optim_wrapper = dict(optimizer=dict(lr=0.001))
load_from = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/pspnet_r50-d8_512x512_80k_ade20k/'
    'pspnet_r50-d8_512x512_80k_ade20k_20200615_014128-15a8b914.pth'
)
