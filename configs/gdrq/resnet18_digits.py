# The float baseline for classification: a small ResNet-18, trained from scratch on crops of handwritten digits.
_base_ = [
    'mmpretrain::_base_/models/resnet18_cifar.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/datasets/digits_classification.py',
    '../_base_/schedules/small_classifier_20e.py',
]

model = dict(backbone=dict(base_channels=16, stem_channels=16), head=dict(in_channels=128))
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=20, max_keep_ckpts=1, save_optimizer=False),
)
randomness = dict(seed=0)
