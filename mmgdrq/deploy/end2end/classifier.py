"""Classifiers as ONNX operators."""

from collections.abc import Mapping, Sequence
from typing import Any

from .operators import Operators


def add_classifier(add: Operators, outputs: Sequence[str], image: str, spec: Mapping[str, Any]) -> None:
    """Turn logits into ``class_scores`` (classes)."""
    add('Softmax', add.reshape(outputs[0], -1), axis=0, output='class_scores')
