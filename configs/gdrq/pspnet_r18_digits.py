# A float baseline for segmentation: PSPNet with twice the channels of the small FCN, trained until it hardly gains.
_base_ = './fcn_r18_digits.py'

model = dict(
    backbone=dict(base_channels=32, stem_channels=32),
    decode_head=dict(
        _delete_=True,
        type='PSPHead',
        in_channels=256,
        in_index=3,
        channels=64,
        pool_scales=(1, 2, 3, 6),
        num_classes=11,
        norm_cfg=dict(type='BN', requires_grad=True),
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=1.0, class_weight=[0.1] + [1.0] * 10),
    ),
)

max_epochs = 24
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=0.004))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-5, end=max_epochs, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=max_epochs))
