"""A small SSD on VGG-11 without BN on scenes of handwritten digits (``python demo/make_digits.py``)."""

from openmmlab import Experiment

TASK = 'ssd_digits'
METRICS = ('AP', 'AP50')
EXPERIMENT = Experiment(
    'configs/gdrq/ssd_vgg11_digits.py',
    {'coco/bbox_mAP': ('AP', 100), 'coco/bbox_mAP_50': ('AP50', 100)},
    epochs=3,
    lr=5e-4,
)
run = EXPERIMENT.run
