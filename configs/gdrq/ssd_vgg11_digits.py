# A float baseline: a small SSD on VGG-11 without BN, trained from scratch on scenes of handwritten digits.
_base_ = [
    'mmdet::_base_/models/ssd300.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/small_detector_4e.py',
]

custom_imports = dict(imports=['mmgdrq'], allow_failed_imports=False)

# half the resolution of the scenes and levels from stride 4 on: the digits have 6 to 29 pixels
input_size = 64
channels = (256, 512, 1024, 256)
model = dict(
    data_preprocessor=dict(std=[58.395, 57.12, 57.375]),
    backbone=dict(depth=11, out_feature_indices=(9, 14, 24), init_cfg=None),
    neck=dict(in_channels=channels[:3], out_channels=channels, level_strides=(2,), level_paddings=(1,)),
    bbox_head=dict(
        type='mmgdrq.SSDHead',
        num_classes=10,
        in_channels=channels,
        anchor_generator=dict(
            input_size=input_size,
            basesize_ratio_range=None,
            min_sizes=[7, 11, 17, 24],
            max_sizes=[11, 17, 24, 32],
            strides=[4, 8, 16, 32],
            ratios=[[2], [2], [2], [2]],
        ),
    ),
)

resize = dict(type='Resize', scale=(input_size, input_size), keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    resize,
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

# without BN the digits take longer to learn, and a longer warm-up
max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=250),
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-5, end=max_epochs, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=max_epochs, max_keep_ckpts=1, save_optimizer=False),
)
