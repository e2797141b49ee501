"""Whether the steps of an optimizer are seen by what is attached to it."""

from collections.abc import Iterator
from typing import Optional

from torch import nn

from ..layers.walk import quantized_layers

CHANGES = 3
"""Iterations before which the weights have changed while no step was seen, from which it is reported.

More than one, as a checkpoint that is loaded changes them, too.
"""


class StepWatch:
    """Compares the changes of the weights with the steps that were seen.

    Attributes:
        seen: whether a step was seen; then there is nothing left to find out.
    """

    def __init__(self) -> None:
        self.seen = False
        self.changes = 0
        self.version: Optional[int] = None

    def missed(self, model: nn.Module) -> bool:
        """Whether the weights of ``model`` have changed without a step; true once."""
        if self.seen:
            return False
        version = next(_versions(model), None)
        self.changes += self.version not in (None, version)
        self.version = version
        self.seen = self.changes == CHANGES
        return self.seen


def _versions(model: nn.Module) -> Iterator[int]:
    """How often the weights that are trained were changed, as torch counts it."""
    weights = (layer.stored_weight() for layer in quantized_layers(model))
    return (weight._version for weight in weights if weight.requires_grad)
