"""A small ResNet-18 on crops of handwritten digits (``python demo/make_digits.py``)."""

from openmmlab import Experiment

TASK = 'resnet18_digits'
METRICS = ('top-1',)
EXPERIMENT = Experiment('configs/gdrq/resnet18_digits.py', {'accuracy/top1': ('top-1', 1)}, epochs=3)
run = EXPERIMENT.run
