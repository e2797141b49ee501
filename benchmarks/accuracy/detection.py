"""A small Faster R-CNN on scenes of handwritten digits (``python demo/make_digits.py``)."""

from openmmlab import Experiment

TASK = 'detection'
METRICS = ('AP', 'AP50')
EXPERIMENT = Experiment(
    'configs/gdrq/faster_rcnn_r18_fpn_digits.py',
    {'coco/bbox_mAP': ('AP', 100), 'coco/bbox_mAP_50': ('AP50', 100)},
)
run = EXPERIMENT.run
