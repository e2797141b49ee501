"""What turns the outputs of the graphs into results: one file for each kind of head."""

from typing import Any, Callable

from .classifier import decode_classifier
from .dense import decode_dense
from .segmentor import decode_segmentor
from .two_stage import decode_two_stage
from .yolov3 import decode_yolov3
from .yolox import decode_yolox

DECODERS: dict[str, Callable[..., Any]] = {
    'classifier': decode_classifier,
    'dense': decode_dense,
    'segmentor': decode_segmentor,
    'two_stage': decode_two_stage,
    'yolov3': decode_yolov3,
    'yolox': decode_yolox,
}
"""``type`` of a decoder in a pipeline file -> its function."""

__all__ = ['DECODERS']
