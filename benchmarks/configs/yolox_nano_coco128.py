"""YOLOX-nano as mmdet builds it, on 128 images of COCO: those of val2017 are tested, those of train2017 calibrate."""

_base_ = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'

widths, out = [64, 128, 256], 64
model = dict(
    backbone=dict(widen_factor=0.25, use_depthwise=True),
    neck=dict(in_channels=widths, out_channels=out, use_depthwise=True),
    bbox_head=dict(in_channels=out, feat_channels=out, use_depthwise=True),
)

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(416, 416), keep_ratio=True),
    dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root='data/coco/', ann_file='val.json', data_prefix=dict(img='val/'), test_mode=True, pipeline=pipeline
    ),
)
test_dataloader = val_dataloader
train_dataloader = dict(
    _delete_=True,
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root='data/coco/',
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        pipeline=pipeline,
    ),
)
val_evaluator = dict(ann_file='data/coco/val.json')
test_evaluator = val_evaluator
