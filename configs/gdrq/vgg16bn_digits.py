# A VGG-16 with BN on crops of handwritten digits, one linear layer after global pooling: the float baseline.
_base_ = './vgg11bn_digits.py'

model = dict(backbone=dict(depth=16))
