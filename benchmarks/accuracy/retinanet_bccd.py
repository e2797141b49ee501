"""A small RetinaNet (ResNet-18, FPN) on BCCD."""

from openmmlab import Experiment

TASK = 'retinanet_bccd'
METRICS = ('AP', 'AP50')
EXPERIMENT = Experiment(
    'configs/gdrq/retinanet_r18_fpn_bccd.py',
    {'coco/bbox_mAP': ('AP', 100), 'coco/bbox_mAP_50': ('AP50', 100)},
    epochs=12,
)
run = EXPERIMENT.run
