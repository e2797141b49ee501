"""Activations that heads leave to the decoder."""

import numpy as np


def exp(x: np.ndarray) -> np.ndarray:
    """Compute the exponential of float32 values, rounded once; numpy's own is off by up to two last bits.

    >>> exp(np.float32([0, 200]))
    array([ 1., inf], dtype=float32)
    """
    with np.errstate(over='ignore', under='ignore'):
        return np.exp(x.astype(np.float64)).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Compute ``1 / (1 + exp(-x))``.

    >>> sigmoid(np.float32([-200, 0, 200]))
    array([0. , 0.5, 1. ], dtype=float32)
    """
    return 1 / (1 + exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    """Normalize the exponentials along the last axis.

    >>> softmax(np.float32([[0, 0], [1000, 0]]))
    array([[0.5, 0.5],
           [1. , 0. ]], dtype=float32)
    """
    exponential = exp(x - x.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def logit(probability: float) -> float:
    """Compute the inverse of :func:`sigmoid`."""
    return float(np.log(probability) - np.log1p(-probability))
