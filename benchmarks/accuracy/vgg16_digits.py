"""A small VGG-16 with BN on crops of handwritten digits (``python demo/make_digits.py``)."""

from openmmlab import Experiment

TASK = 'vgg16_digits'
METRICS = ('top-1',)
EXPERIMENT = Experiment('configs/gdrq/vgg16bn_digits.py', {'accuracy/top1': ('top-1', 1)}, epochs=3)
run = EXPERIMENT.run
