# The float baseline: a small Faster R-CNN, trained from scratch on scenes of handwritten digits.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/datasets/digits_detection.py',
    '../_base_/schedules/small_detector_4e.py',
]

channels = 64
model = dict(
    backbone=dict(
        depth=18,
        base_channels=32,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels, num_outs=4),
    # anchors of 16, 32, 64 and 128 pixels; digits are taller than wide
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4], ratios=[1.0, 1.6, 2.5], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=channels,
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=1),
        ),
        bbox_head=dict(
            in_channels=channels,
            fc_out_channels=256,
            num_classes=10,
            reg_class_agnostic=True,
            loss_bbox=dict(loss_weight=2.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=48, pos_fraction=0.5)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(max_per_img=50),
    ),
)

default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=4, max_keep_ckpts=1, save_optimizer=False),
)
