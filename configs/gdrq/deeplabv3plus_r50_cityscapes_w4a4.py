# DeepLabV3+, ResNet-50, Cityscapes: 4-bit weights, 4-bit inputs, fine-tuned from the float weights of mmseg.
_base_ = ['mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024.py', '../_base_/gdrq/w4a4.py']

model = dict(pretrained=None)
optim_wrapper = dict(optimizer=dict(lr=0.001))
load_from = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3plus/deeplabv3plus_r50-d8_512x1024_80k_cityscapes/'
    'deeplabv3plus_r50-d8_512x1024_80k_cityscapes_20200606_114049-f9fb496d.pth'
)
