"""As retinanet_digits.py, with three times as many epochs a row."""

from dataclasses import replace

import retinanet_digits

TASK = 'retinanet_digits_long'
METRICS = retinanet_digits.METRICS
EXPERIMENT = replace(retinanet_digits.EXPERIMENT, epochs=9)
run = EXPERIMENT.run
