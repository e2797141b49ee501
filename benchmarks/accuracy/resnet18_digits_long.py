"""As resnet18_digits.py, with four times as many epochs a row."""

from dataclasses import replace

import resnet18_digits

TASK = 'resnet18_digits_long'
METRICS = resnet18_digits.METRICS
EXPERIMENT = replace(resnet18_digits.EXPERIMENT, epochs=12)
run = EXPERIMENT.run
