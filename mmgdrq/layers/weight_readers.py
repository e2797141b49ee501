"""Modules that read the weight of a child instead of calling it, such as BEiT's attention with its own biases."""

from functools import cache
from inspect import signature
from typing import Any, Optional, cast

from torch import nn

from .base import ModuleMixin, QuantizedLayer, is_quantized
from .functional_weight import derive, functional_copy

Reads = tuple[tuple[str, Optional[str]], ...]
"""Name of a child -> the argument of the parent's forward pass that the child's weight is applied to."""


class ReadLinear(QuantizedLayer, nn.Linear):
    """An ``nn.Linear`` whose parent applies its weight; the parent asks its quantizers."""


class ReadConv2d(QuantizedLayer, nn.Conv2d):
    """An ``nn.Conv2d`` whose parent applies its weight; the parent asks its quantizers."""


class WeightReader(ModuleMixin):
    """Runs the float module's forward pass with quantized inputs, on a copy whose children hold quantized weights."""

    reads: Reads = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        cls: Any = type(self)
        inputs: dict[Any, Any] = {**dict(zip(_argument_names(cls), args)), **kwargs}
        reader: nn.Module = self
        for name, argument in self.reads:
            child = self.get_submodule(name)
            if is_quantized(child):
                reader = _with_child(reader, name, functional_copy(child, weight=child.weight_quantizer(child.weight)))
                inputs[argument] = child.activation_quantizer(inputs[argument])
        return super(WeightReader, cast(WeightReader, reader)).forward(**inputs)


def _with_child(parent: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """A shallow copy of ``parent`` with another child; the name may be that of a descendant."""
    first, _, rest = name.partition('.')
    if rest:
        child = _with_child(parent.get_submodule(first), rest, child)
    copied = functional_copy(parent)
    copied._modules = {**parent._modules, first: child}
    return copied


@cache
def _argument_names(cls: Any) -> tuple[str, ...]:
    return tuple(signature(cls.derived_from[0].forward).parameters)[1:]


def read_quantized(parent: nn.Module, reads: Reads) -> None:
    """Let ``parent`` read the quantized weights of its children, in place."""
    parent.__class__ = derive(type(parent), WeightReader)
    cast(WeightReader, parent).reads = reads
