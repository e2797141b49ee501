"""What ONNX Runtime does to the result of a block, in torch: an integer bias, and a result of 8 bits.

:func:`~mmgdrq.deploy.simulation.simulate` puts it behind the blocks of a quantized model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...layers import QUANTIZE, ActivationQuantizer
from ...layers.walk import all_modules
from ...quant import ActivationSpec
from ..folding.fold import input_codes, weight_scale
from .block import SIGNED_ZERO, Grid
from .onnxruntime import bias_change, refinement

RESULT = ActivationSpec(bits=8, range='minmax', signed=True)
"""The grid of a rounded result, with a running range."""
CHILD = 'engine_result'
"""Name of an :class:`EngineResult` in the module whose result it changes."""


class EngineResult(nn.Module):
    """Stands behind a block, a quantized or folded layer with its BN, and does to the result what the engine does.

    The bias is rounded to a multiple of input step * weight scale. It is the one of the running statistics, in
    training too, as there is no other one in the engine.

    Args:
        layer: the quantized layer.
        lowest: its lowest weight integer.
        rounds: whether the result is rounded to 8 bits.
        name: of the module whose result it is, for messages.
    """

    def __init__(self, layer: nn.Module, lowest: int, rounds: bool, name: str) -> None:
        super().__init__()
        self.active = True
        self.layer = (layer,)  # a tuple, as it is no part of this module
        self.lowest = lowest
        self.quantizer = ActivationQuantizer(RESULT, layer.weight.device) if rounds else nn.Identity()
        self.quantizer.layer_name = name

    def after(self, tail: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        """Forward hook of the last module of the block."""
        if not self.active:
            return y
        return self.quantizer(self.with_rounded_bias(tail, y))

    def with_rounded_bias(self, tail: nn.Module, y: Tensor) -> Tensor:
        """``y`` with its bias on the engine's grid; as it is where nothing is rounded yet."""
        with torch.no_grad():
            unit = unit_of(self.layer[0])
            if unit is None:
                return y
            change = bias_change(unit, *_scale_and_offset(tail, self.layer[0]), self.refinement())
        channel = -1 if isinstance(self.layer[0], nn.Linear) else -3
        shape = [1] * y.dim()
        shape[channel] = -1
        return y + change.reshape(shape).to(y.dtype)

    def refinement(self) -> int:
        """Factor on the weight codes, as in the graph."""
        layer = self.layer[0]
        folded = hasattr(layer, 'input_codes')
        limits = getattr(layer.input_codes, 'limits', None) if folded else input_codes(layer)[1]
        low, high = limits or (0, 255)
        return refinement(self.lowest, high + (SIGNED_ZERO if low < 0 else 0))

    def grid(self) -> Optional[Grid]:
        """The grid of the result; None: it is not rounded, or has no range yet."""
        quantizer = self.quantizer
        if isinstance(quantizer, nn.Identity) or not quantizer.is_ready():
            return None
        return Grid(float(quantizer.threshold) / RESULT.levels(signed=True), SIGNED_ZERO)


def unit_of(layer: nn.Module) -> Optional[Tensor]:
    """Value of one unit of input code * weight code, shape ``(O,)``; None: the layer is not rounded (yet)."""
    if hasattr(layer, 'input_codes'):  # folded
        return layer.weight.new_ones(layer.weight.shape[0]) if layer.scale is None else layer.scale
    quantizers = layer.weight_quantizer, layer.activation_quantizer
    if any(q.mode != QUANTIZE for q in quantizers) or not quantizers[1].is_ready():
        return None
    return weight_scale(layer, layer.weight) * input_codes(layer)[0]


def _scale_and_offset(tail: nn.Module, layer: nn.Module) -> tuple[Tensor, Tensor]:
    one = layer.weight.new_ones(layer.weight.shape[0])
    if not isinstance(tail, _BatchNorm):
        bias = layer.offset if hasattr(layer, 'input_codes') else layer.bias
        return one, 0 * one if bias is None else bias
    norm: Any = tail  # one with running statistics
    gamma, beta = (one, 0 * one) if norm.weight is None else (norm.weight, norm.bias)
    scale = gamma / torch.sqrt(norm.running_var + norm.eps)
    mean = norm.running_mean
    if getattr(layer, 'bias', None) is not None:  # a folded layer has none: it is part of the mean
        mean = mean - layer.bias
    return scale, beta - mean * scale


def simulated(model: nn.Module) -> dict[str, EngineResult]:
    """Name of a module -> what stands behind it."""
    found = ((name, getattr(module, CHILD, None)) for name, module in model.named_modules())
    return {name: result for name, result in found if isinstance(result, EngineResult)}


@contextmanager
def without_simulation(*models: nn.Module) -> Iterator[None]:
    """Inside, the results of the blocks are those of the quantized model."""
    results = [result for model in models for result in simulated(model).values()]
    for result in results:
        result.active = False
    try:
        yield
    finally:
        for result in results:
            result.active = True


def trained_grids(model: nn.Module) -> dict[str, Grid]:
    """Name of a module -> the grid that its result was trained with."""
    grids = {name: result.grid() for name, result in simulated(model).items()}
    return {name: grid for name, grid in grids.items() if grid is not None}


def hook_up(model: nn.Module, *_: Any) -> None:
    """Also before forward passes: the conversion to SyncBN makes new modules, which keep children but no hooks."""
    for module in all_modules(model):
        result = module._modules.get(CHILD)
        if isinstance(result, EngineResult) and result.after not in module._forward_hooks.values():
            module.register_forward_hook(result.after)
