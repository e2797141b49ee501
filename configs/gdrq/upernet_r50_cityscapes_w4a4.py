# UPerNet, ResNet-50, Cityscapes: 4-bit weights, 4-bit inputs, fine-tuned from the float weights of mmseg.
_base_ = ['mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py', '../_base_/gdrq/w4a4.py']

model = dict(pretrained=None)
optim_wrapper = dict(optimizer=dict(lr=0.001))
load_from = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/upernet/upernet_r50_512x1024_80k_cityscapes/'
    'upernet_r50_512x1024_80k_cityscapes_20200607_052207-848beca8.pth'
)
