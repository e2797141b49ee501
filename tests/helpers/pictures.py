"""Images for tests."""

import numpy as np


def smooth_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a BGR image whose colours change slowly, shape ``(height, width, 3)``, uint8."""
    import cv2

    small = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
