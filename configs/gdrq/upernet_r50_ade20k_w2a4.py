# UPerNet, ResNet-50, ADE20K: 2-bit weights, 4-bit inputs, fine-tuned from the float weights of mmseg.
_base_ = ['mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py', '../_base_/gdrq/w2a4_by_iter.py']

model = dict(pretrained=None)
optim_wrapper = dict(optimizer=dict(lr=0.001))
load_from = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/upernet/upernet_r50_512x512_80k_ade20k/'
    'upernet_r50_512x512_80k_ade20k_20200614_144127-ecc8377b.pth'
)
