"""Bring what an optimizer of an older version has saved to the shapes of today's parameters."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer

SCALARS = ('step', 'mu_product', 'mu', 'eta')
"""What optimizers of torch remember as one number, whatever the parameter."""


def reshape_learned(optimizer: Optimizer, learned: Iterable[nn.Parameter]) -> None:
    """Give what is remembered of learned input ranges their dimension, which older versions did not have.

    Args:
        optimizer: changed in place.
        learned: the ranges.
    """
    for parameter in learned:
        for key, value in optimizer.state.get(parameter, {}).items():
            if key not in SCALARS and isinstance(value, Tensor) and value.dim() == 0 and parameter.shape == (1,):
                optimizer.state[parameter][key] = value.reshape(1)
