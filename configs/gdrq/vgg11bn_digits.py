# A VGG-11 with BN on crops of handwritten digits, one linear layer after global pooling: the float baseline.
_base_ = './resnet18_digits.py'

model = dict(backbone=dict(_delete_=True, type='VGG', depth=11, norm_cfg=dict(type='BN')), head=dict(in_channels=512))
