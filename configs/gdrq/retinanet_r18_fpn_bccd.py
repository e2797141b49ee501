# A float baseline: a small RetinaNet, trained from scratch on photographs of blood cells.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/small_detector_24e.py',
]

channels = 64
model = dict(
    backbone=dict(depth=18, base_channels=32, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels, start_level=0, num_outs=5),
    # anchors from 16 pixels on, about square as cells are
    bbox_head=dict(
        num_classes=3,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        anchor_generator=dict(
            octave_base_scale=4, scales_per_octave=2, ratios=[0.8, 1.0, 1.25], strides=[4, 8, 16, 32, 64]
        ),
    ),
)
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=24, max_keep_ckpts=1, save_optimizer=False),
)
