"""How far quantization moves the weight and the output of each layer by itself."""

from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from ..layers import ActivationQuantizer, AffineQuantizer, WeightQuantizer, built_specs, is_quantized
from ..quantized_model.stages import set_stage
from .report import CalibratedLayer


@torch.no_grad()
def layer_errors(model: nn.Module, run: Callable[[], Any]) -> tuple[CalibratedLayer, ...]:
    """Look at every quantized layer while the model runs in float.

    Args:
        model: a quantized model in stage ``'quantize'`` and in evaluation mode, which it is afterwards too.
        run: runs it on a batch.
    """
    layers = {name: module for name, module in model.named_modules() if is_quantized(module)}
    sums: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(_compare(model, name, sums), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        set_stage(model, 'float')
        run()
    finally:
        set_stage(model, 'quantize')
        for hook in hooks:
            hook.remove()
    return tuple(_row(name, layer, sums.get(name)) for name, layer in layers.items())


def _compare(model: nn.Module, name: str, sums: dict[str, Tensor]) -> Callable:
    """A hook that adds the squared error of the output and its squared norm."""

    def hook(layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        expected = _tensor(output)
        if expected is None or not _has_range(layer):
            return
        set_stage(model, 'quantize')
        try:
            found = _tensor(layer.forward(*args, **kwargs))
        finally:
            set_stage(model, 'float')
        assert found is not None, 'the same call gives the same kind of output'
        pair = torch.stack([_norm(found - expected), _norm(expected)]).square()
        sums[name] = sums[name] + pair if name in sums else pair

    return hook


def _tensor(output: Any) -> Optional[Tensor]:
    output = output[0] if isinstance(output, tuple) else output
    return output if isinstance(output, Tensor) else None


def _has_range(layer: nn.Module) -> bool:
    quantizer = layer.activation_quantizer
    return isinstance(quantizer, nn.Identity) or quantizer.is_ready()


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64)


def _row(name: str, layer: nn.Module, sums: Optional[Tensor]) -> CalibratedLayer:
    weight, activation = built_specs(layer)
    weight_error = None
    if isinstance(layer.weight_quantizer, WeightQuantizer):
        filters = layer.filters().detach()
        weight_error = float(_norm(layer.weight_quantizer(filters) - filters) / _norm(filters).clamp(min=1e-30))
    output_error = None if sums is None else float((sums[0] / sums[1].clamp(min=1e-60)).sqrt())
    return CalibratedLayer(name, weight.bits, activation.bits, _input_range(layer), weight_error, output_error)


def _input_range(layer: nn.Module) -> Optional[tuple[float, float]]:
    quantizer = layer.activation_quantizer
    if isinstance(quantizer, AffineQuantizer) and quantizer.is_ready():
        low, high = quantizer.bounds()
        return float(low.min()), float(high.max())
    if not isinstance(quantizer, ActivationQuantizer) or not quantizer.is_ready():
        return None
    threshold = float(quantizer.threshold)
    return (-threshold if bool(quantizer.signed) else 0.0), threshold
