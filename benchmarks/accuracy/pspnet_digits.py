"""PSPNet (ResNet-18) on scenes of handwritten digits, from a float model that has been trained for long."""

from openmmlab import Experiment

TASK = 'pspnet_digits'
METRICS = ('mIoU',)
EXPERIMENT = Experiment('configs/gdrq/pspnet_r18_digits.py', {'mIoU': ('mIoU', 1)}, epochs=4, lr=0.002)
run = EXPERIMENT.run
