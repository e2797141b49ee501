"""What a model finds in an image, as plain arrays."""

from dataclasses import dataclass
from typing import Optional, Union

import numpy as np


@dataclass(frozen=True)
class Detections:
    """Objects in an image, from the highest score to the lowest.

    Attributes:
        boxes: shape ``(N, 4)``, float32, corners ``x1, y1, x2, y2`` in pixels of the image.
        scores: shape ``(N,)``, float32.
        labels: shape ``(N,)``, int64, indices into the classes of the model.
        masks: shape ``(N, H, W)``, bool; None where the model predicts none.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index) -> 'Detections':
        """Keep some of them, in the order of ``index``."""
        masks = None if self.masks is None else self.masks[index]
        return Detections(self.boxes[index], self.scores[index], self.labels[index], masks)


@dataclass(frozen=True)
class Segmentation:
    """The class of each pixel.

    Attributes:
        label_map: shape ``(H, W)``, int64.
    """

    label_map: np.ndarray


@dataclass(frozen=True)
class Classification:
    """The class of an image.

    Attributes:
        class_scores: shape ``(classes,)``, float32, with the sum 1.
        label: index of the highest one.
    """

    class_scores: np.ndarray
    label: int


Result = Union[Detections, Segmentation, Classification]
