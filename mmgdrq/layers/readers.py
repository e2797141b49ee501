"""Modules that read the weight of a child instead of calling it, such as BEiT's attention with its own biases."""

from contextlib import ExitStack
from functools import cache
from inspect import signature
from typing import Any, Optional

from torch import nn

from .base import QuantizedLayer, is_quantized
from .lending import derive, lent

Reads = tuple[tuple[str, Optional[str]], ...]
"""Name of a child -> the argument of the parent's forward pass that the child's weight is applied to."""


class ReadLinear(QuantizedLayer, nn.Linear):
    """An ``nn.Linear`` whose parent applies its weight; the parent asks its quantizers."""


class ReadConv2d(QuantizedLayer, nn.Conv2d):
    """An ``nn.Conv2d`` whose parent applies its weight; the parent asks its quantizers."""


class WeightReader:
    """Runs the float module's forward pass with quantized inputs, while its children hold quantized weights."""

    reads: Reads = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = {**dict(zip(_argument_names(type(self)), args)), **kwargs}
        with ExitStack() as stack:
            for name, argument in self.reads:
                child = self.get_submodule(name)
                if is_quantized(child):
                    stack.enter_context(lent(child, weight=child.weight_quantizer(child.weight)))
                    inputs[argument] = child.activation_quantizer(inputs[argument])
            return super().forward(**inputs)


@cache
def _argument_names(cls: type) -> tuple[str, ...]:
    return tuple(signature(cls.derived_from[0].forward).parameters)[1:]


def read_quantized(parent: nn.Module, reads: Reads) -> None:
    """Let ``parent`` read the quantized weights of its children, in place."""
    parent.reads = reads
    parent.__class__ = derive(type(parent), WeightReader)
