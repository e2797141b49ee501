"""Classifiers: scores of all classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..activations import softmax
from ..preprocessing import ImageInfo
from ..results import Classification


def decode_classifier(
    outputs: Sequence[np.ndarray], info: ImageInfo, spec: Mapping[str, Any], parts: Mapping[str, Any]
) -> Classification:
    """Turn the logits of an image, shape ``(classes,)``, into scores; of equal ones the first is the label."""
    scores = softmax(outputs[0])
    return Classification(scores, int(scores.argmax()))
