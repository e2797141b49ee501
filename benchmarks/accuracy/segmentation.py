"""A small FCN on scenes of handwritten digits (``python demo/make_digits.py``)."""

from openmmlab import Experiment

TASK = 'segmentation'
METRICS = ('mIoU',)
EXPERIMENT = Experiment('configs/gdrq/fcn_r18_digits.py', {'mIoU': ('mIoU', 1)}, epochs=2, lr=0.004)
run = EXPERIMENT.run
