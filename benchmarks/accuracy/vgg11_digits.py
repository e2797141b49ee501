"""A small VGG-11 with BN on crops of handwritten digits (``python demo/make_digits.py``)."""

from openmmlab import Experiment

TASK = 'vgg11_digits'
METRICS = ('top-1',)
EXPERIMENT = Experiment('configs/gdrq/vgg11bn_digits.py', {'accuracy/top1': ('top-1', 1)}, epochs=3)
run = EXPERIMENT.run
