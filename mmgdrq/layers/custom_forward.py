"""Quantize layers of other libraries that have a forward pass of their own.

Such a layer is a subclass of torch's whose ``forward`` does more than one call: it pads as its input asks for
(``Conv2dSame`` of timm), or computes its weight first (``StdConv2d``). As long as it calls one convolution or matrix
product, that call's operands are quantized where it happens, whatever the rest of the forward pass does.
"""

import copy
from dataclasses import dataclass
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .base import QuantizedLayer
from .functional_weight import Derived

OPERATIONS: dict[type, Callable] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d, nn.Linear: F.linear}
"""Class of torch -> the operation that its subclasses are expected to call once."""

PROBE_SIZE = 33
"""Edge of the made-up input that a forward pass is looked at with."""

QUANTIZERS = ('weight_quantizer', 'activation_quantizer')


@dataclass(frozen=True)
class Call:
    """The one operation that a forward pass calls.

    Attributes:
        weight: what it is called with, filters first, shape ``(O, ...)``.
        is_parameter: whether that is the parameter ``weight`` of the layer, not something computed from it.
    """

    weight: Tensor
    is_parameter: bool


class CustomForward(QuantizedLayer):
    """A layer whose own forward pass runs with a quantized input and weight in the one operation that it calls.

    Attributes:
        computes_weight: whether that weight is computed from the stored one. The computed one is quantized then, and
            Scale-Clip, which works on the stored one, leaves the layer alone.
    """

    def attach(self, *args: Any, **kwargs: Any) -> None:
        self.computes_weight = not self._call().is_parameter
        super().attach(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        operation = operation_of(self)
        assert operation is not None
        with _Quantizing(self, operation):
            return super().forward(*args, **kwargs)

    def filters(self) -> Tensor:
        return self._call().weight if self.computes_weight else self.weight

    def _call(self) -> Call:
        call = called_operation(self)
        assert call is not None, 'only layers that call one operation become such a layer'
        return call

    def scale_clip_(self) -> None:
        if not self.computes_weight:
            super().scale_clip_()


class _Quantizing(TorchFunctionMode):
    """Quantizes the operands of the operation while a layer runs."""

    def __init__(self, layer: nn.Module, operation: Callable) -> None:
        super().__init__()
        self.layer, self.operation = layer, operation

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is self.operation:
            args, kwargs = _with_operands(args, kwargs, self._quantized)
        return func(*args, **kwargs)

    def _quantized(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.activation_quantizer(x), self.layer.weight_quantizer(weight)


class _Recording(TorchFunctionMode):
    """Notes the weights that an operation is called with."""

    def __init__(self, operation: Callable) -> None:
        super().__init__()
        self.operation = operation
        self.weights: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is self.operation:
            _with_operands(args, kwargs, self._note)
        return func(*args, **kwargs)

    def _note(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        self.weights.append(weight)
        return x, weight


def _with_operands(args: tuple, kwargs: dict, change: Callable[[Tensor, Tensor], tuple]) -> tuple[tuple, dict]:
    """The arguments of an operation with other operands; both may be given by position or by name."""
    named = dict(zip(('input', 'weight'), args), **{key: kwargs[key] for key in ('input', 'weight') if key in kwargs})
    changed = dict(zip(('input', 'weight'), change(named['input'], named['weight'])))
    rest = {key: value for key, value in kwargs.items() if key not in changed}
    return tuple(list(changed.values())[: len(args)]) + args[2:], {**dict(list(changed.items())[len(args) :]), **rest}


def operation_of(layer: nn.Module) -> Optional[Callable]:
    """The operation of the class of torch that a layer is derived from; None for other layers."""
    return next((operation for cls, operation in OPERATIONS.items() if isinstance(layer, cls)), None)


@torch.no_grad()
def called_operation(layer: nn.Module) -> Optional[Call]:
    """The operation that the forward pass of a layer calls, seen on a made-up input.

    Returns:
        None where it calls the operation not at all or several times, calls it with a weight of another shape, or
        does not run on one tensor.
    """
    operation = operation_of(layer)
    if operation is None or layer.weight.is_meta:
        return None
    copied, recording = _copy_in_float(layer), _Recording(operation)
    try:
        with recording:
            copied(_probe(layer))
    except Exception:  # whatever a forward pass raises that asks for more than one tensor
        return None
    if len(recording.weights) != 1 or recording.weights[0].shape != layer.weight.shape:
        return None
    (weight,) = recording.weights
    return Call(weight, weight is layer.weight)


def _copy_in_float(layer: nn.Module) -> nn.Module:
    """The float layer with the same parameters, in evaluation mode, with buffers and children of its own."""
    copied = copy.copy(layer)
    if isinstance(layer, Derived):
        copied.__class__ = layer.derived_from[0]
    copied._buffers = copy.deepcopy(layer._buffers)
    copied._modules = copy.deepcopy({name: child for name, child in layer._modules.items() if name not in QUANTIZERS})
    return copied.eval()


def _probe(layer: nn.Module) -> Tensor:
    options = dict(device=layer.weight.device, dtype=layer.weight.dtype)
    if isinstance(layer, nn.Linear):
        return torch.zeros(2, layer.in_features, **options)
    edges = [max(PROBE_SIZE, 2 * size * dilation) for size, dilation in zip(layer.kernel_size, layer.dilation)]
    return torch.zeros(2, layer.in_channels, *edges, **options)
