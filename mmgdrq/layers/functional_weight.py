"""Quantized layers whose forward pass is the float layer's own, which reads ``self.weight``.

It runs on a shallow copy of the layer that holds the fake-quantized weight. That suits every layer whose forward pass
is more than one call of a convolution: adaptive padding, deformable convolutions, normalized weights.
"""

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from .base import QuantizedLayer


def functional_copy(layer: nn.Module, **tensors: Tensor) -> nn.Module:
    """A shallow copy of ``layer`` that has the given tensors in place of its parameters of these names.

    The layer itself stays as it is, so that several threads may use it at once.

    >>> import torch
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> functional_copy(layer, weight=torch.tensor([[1.0, 2.0]])).forward(torch.ones(1, 2)).item()
    3.0
    >>> isinstance(layer.weight, nn.Parameter)
    True
    """
    twin = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__)
    twin.__dict__.update(tensors, _parameters={k: v for k, v in layer._parameters.items() if k not in tensors})
    return twin


class Derived:
    """Base of the classes that :func:`derive` makes; copies and pickles know how to make theirs again."""

    derived_from: tuple[type, type, tuple[str, ...]]

    def __reduce__(self):
        return _blank, self.derived_from, self.__dict__


def derive(cls: type, behaviour: type, own: tuple[str, ...] = ()) -> type:
    """The class ``cls`` with the methods of ``behaviour`` before its own.

    Its name is that of ``cls`` and its bases include those of ``cls``, as ``init_cfg`` of OpenMMLab matches layers by
    the names of their class and its bases.

    Args:
        cls: class of a float layer.
        behaviour: a quantized layer class, or a mixin of one.
        own: methods of ``cls`` that stay before those of ``behaviour``.
    """
    return _derived(cls, behaviour, own)


@cache
def _derived(cls: type, behaviour: type, own: tuple[str, ...]) -> type:
    bases = [base for base in cls.__bases__ if base not in (object, nn.Module) and base not in behaviour.__mro__]
    namespace: dict[str, Any] = {name: getattr(cls, name) for name in own}
    if own:
        namespace['folds_as'] = None
    namespace.update(__doc__=cls.__doc__, derived_from=(cls, behaviour, own))
    return type(cls.__name__, (Derived, behaviour, cls, *bases), namespace)


def _blank(cls: type, behaviour: type, own: tuple[str, ...]) -> nn.Module:
    return object.__new__(_derived(cls, behaviour, own))


class FunctionalWeight(QuantizedLayer):
    """A layer that runs the float layer's forward pass with a quantized weight and first input.

    An input that is a list of tensors (TridentNet) is quantized tensor by tensor.
    """

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        weight, x = self.functional_weight(), self.quantized_input(input)
        if torch.compiler.is_compiling():  # it cannot trace the copy, and one thread traces at a time
            parameters: dict[str, Any] = self._parameters
            kept, parameters['weight'] = parameters['weight'], weight
            try:
                return super().forward(x, *args, **kwargs)
            finally:
                parameters['weight'] = kept
        twin = cast(FunctionalWeight, functional_copy(self, weight=weight))
        return super(FunctionalWeight, twin).forward(x, *args, **kwargs)

    def functional_weight(self) -> Tensor:
        """The fake-quantized weight, in the shape of the parameter."""
        return self.weight_quantizer(self.filters())

    def quantized_input(self, input: Any) -> Any:
        """The fake-quantized input."""
        if isinstance(input, (list, tuple)):
            return type(input)(map(self.activation_quantizer, input))
        return self.activation_quantizer(input)
