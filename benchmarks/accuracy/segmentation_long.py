"""As segmentation.py, with four times as many epochs a row."""

from dataclasses import replace

import segmentation

TASK = 'segmentation_long'
METRICS = segmentation.METRICS
EXPERIMENT = replace(segmentation.EXPERIMENT, epochs=8)
run = EXPERIMENT.run
