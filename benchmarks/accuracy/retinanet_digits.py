"""A small RetinaNet (ResNet-18, FPN) on scenes of handwritten digits."""

from openmmlab import Experiment

TASK = 'retinanet_digits'
METRICS = ('AP', 'AP50')
EXPERIMENT = Experiment(
    'configs/gdrq/retinanet_r18_fpn_digits.py',
    {'coco/bbox_mAP': ('AP', 100), 'coco/bbox_mAP_50': ('AP50', 100)},
    epochs=3,
    lr=0.002,
)
run = EXPERIMENT.run
