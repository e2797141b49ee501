# DeepLabV3, ResNet-50, VOC 2012: 2-bit weights, 4-bit inputs, fine-tuned from the float weights of mmseg.
_base_ = ['mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512.py', '../_base_/gdrq/w2a4_by_iter.py']

model = dict(pretrained=None)
optim_wrapper = dict(optimizer=dict(lr=0.001))
load_from = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3/deeplabv3_r50-d8_512x512_20k_voc12aug/'
    'deeplabv3_r50-d8_512x512_20k_voc12aug_20200617_010906-596905ef.pth'
)
