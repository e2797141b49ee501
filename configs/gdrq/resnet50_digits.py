# A narrow ResNet-50 on crops of handwritten digits, trained from scratch: the float baseline.
_base_ = './resnet18_digits.py'

model = dict(backbone=dict(depth=50), head=dict(in_channels=512))
