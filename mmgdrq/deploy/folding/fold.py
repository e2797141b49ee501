"""Fold the steps of weights and activations into batch normalization; what is left is integers.

With ``y = gamma (conv(Wq, xq) + b - mu) / sqrt(var + eps) + beta``, ``Wq = s_g W_int`` and ``xq = s_a x_int``::

    gamma' = gamma s_g s_a,    mu' = (mu - b) / (s_g s_a),    var' = var,    beta' = beta

gives the same ``y`` from ``conv(W_int, x_int)``. Where no BN follows, the layer keeps ``s_g s_a`` as one scale a
filter and ``b`` as its offset.
"""

from dataclasses import dataclass, replace
from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor, nn

from ...errors import FoldError
from ...layers import ActivationQuantizer, AffineQuantizer, WeightQuantizer, is_quantized
from ...layers.quantizers.quantizer import Quantizer
from ...layers.walk import all_modules
from ...quant import per_filter, quantize, step_of, weight_step
from ...quantized_model.conversion import copy_model
from ...quantized_model.stages import get_stage
from ...quantized_model.state import is_root
from .affine_inputs import AffineCodes, affine_grid, step_per_filter
from .batchnorm_pairs import Pairs, can_carry_scale, foreign_hooks, pairs_by_structure, pairs_by_trace
from .folded_layers import STORED, FoldedLayer, apply_masks, become_folded, become_folded_model

Example = Union[None, Tensor, tuple[Any, ...], Callable[[nn.Module], object]]


def fold(model: nn.Module, example: Example = None, pairs: Optional[Pairs] = None) -> nn.Module:
    """Return a folded copy of a quantized model; the model itself is not changed.

    Args:
        model: a quantized model whose activation ranges are set, or a module with one inside.
        example: inputs (a tensor or a tuple), or a function that runs the model it is given. With it, the
            BN of each layer is found by tracing; without it only where the code of the containing module
            guarantees it. A layer without a certain BN keeps one scale per filter, which is always right.
        pairs: layer name -> BN name, where the caller knows them.

    Returns:
        A copy in eval mode. ``copy.gdrq_folded`` maps layer names to what they became.

    Raises:
        FoldError: nothing to fold, a range that was never set, or a stage other than ``'quantize'``.

    >>> import mmgdrq
    >>> net = mmgdrq.quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    >>> x = torch.rand(2, 3, 8, 8)
    >>> y = net.train()(x)
    >>> bool(torch.allclose(fold(net)(x), net.eval()(x), atol=1e-5))
    True
    """
    check_foldable(model)
    if pairs is None:
        pairs = find_pairs(model, example)
    folded = copy_model(model).eval()
    modules = dict(folded.named_modules())
    entries = {}
    with torch.no_grad():
        for name, layer in list(modules.items()):
            if is_quantized(layer):
                if layer.folds_as is not None:
                    apply_masks(layer)
                _check_finite(name, layer)
                if not _is_foldable(layer):
                    entries[name] = _store_layer(layer)
                    continue
                norm = pairs.get(name)
                if norm:
                    _check_norm(name, norm, modules[norm])
                entries[name] = replace(_fold_layer(layer, modules[norm] if norm else None), norm=norm)
    become_folded_model(folded, entries)
    return folded


def find_pairs(model: nn.Module, example: Example = None) -> Pairs:
    """The BN of every layer that has a certain one; see :func:`fold` for ``example``."""
    if example is None:
        return pairs_by_structure(model)
    training = [module for module in all_modules(model) if module.training]
    model.eval()
    try:
        return pairs_by_trace(model, lambda: run_example(model, example))
    finally:
        for module in training:  # not model.train(): parts of it may be in eval mode, such as a frozen BN
            module.training = True


def run_example(model: nn.Module, example: Example) -> object:
    """Run ``model`` on an example, see :func:`fold`."""
    if isinstance(example, Tensor):
        return model(example)
    if isinstance(example, tuple):
        return model(*example)
    assert example is not None
    return example(model)


def check_foldable(model: nn.Module) -> None:
    """Raise where folding would give another model than the quantized one."""
    layers = {name: m for name, m in model.named_modules() if is_quantized(m)}
    if not layers:
        raise FoldError('fold: the model has no quantized layer. Quantize and train it first')
    for name, module in model.named_modules():  # the quantized model may stand in a wrapper
        stage = get_stage(module) if is_root(module) else 'quantize'
        if isinstance(module, Quantizer):  # of a part of a model, or of a copy that has lost its root
            stage = module.state.stage
        if stage != 'quantize':
            raise FoldError(
                f"fold: {name or 'the model'} is in stage '{stage}', without rounding. Train it through "
                "the 'quantize' stage first"
            )
    for name, layer in layers.items():
        if not layer.has_one_weight:
            raise FoldError(
                f'fold: {name} ({type(layer).__name__}) computes with several weights, which cannot be stored as one. '
                'Leave it in float with rules=[dict(pattern=..., skip=True)], or evaluate the quantized model as it is'
            )
        hooks = foreign_hooks(layer._forward_hooks)
        if hooks:
            raise FoldError(
                f'fold: {name} has the forward hook {hooks[0]}, which would see integers, and be lost in graphs. '
                'Remove it, or do what it does in a module of its own'
            )
        quantizer = layer.activation_quantizer
        if isinstance(quantizer, (ActivationQuantizer, AffineQuantizer)) and not quantizer.is_ready():
            raise FoldError(
                f'fold: {name} has no activation range. Train at least one iteration, or load a checkpoint of the '
                'quantized model. If it has been trained, no forward pass calls this layer: skip it in a rule'
            )


def _check_norm(name: str, norm: str, module: nn.Module) -> None:
    if getattr(module, 'running_mean', None) is None:
        raise FoldError(
            f'fold: {norm}, the BN of {name}, has no running statistics (track_running_stats=False), so it '
            f'cannot carry a scale. Leave {name} out of `pairs`'
        )
    if not can_carry_scale(module):
        raise FoldError(
            f"fold: {norm}, the BN of {name}, is a {type(module).__name__} that does something else than torch's batch "
            f'normalization, or has hooks, so it cannot carry a scale. Leave {name} out of `pairs`'
        )


def _check_finite(name: str, layer: nn.Module) -> None:
    for key, tensor in layer.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise FoldError(
                f'fold: {name}.{key} is not finite. Fold an earlier checkpoint, and see where NaN came from'
            )


def _is_foldable(layer: nn.Module) -> bool:
    return layer.folds_as is not None and layer._parameters.get('weight') is not None


def _store_layer(layer: nn.Module) -> FoldedLayer:
    """The layer keeps its forward pass and input quantizer; its quantized weight is stored as codes."""
    weight = weight_codes(layer, layer.filters().detach())
    _, limits, bits = input_codes(layer)
    entry = FoldedLayer(
        STORED, tuple(weight.codes.shape), limits, bits, *weight.integers, input_grid=affine_grid(layer)
    )
    become_folded(layer, entry)
    if entry.weight_bits <= 8:
        layer.weight_quantizer.codes.copy_(weight.codes)
        layer.weight_quantizer.scale.copy_(weight.scale)
    return entry


def _fold_layer(layer: nn.Module, norm: Optional[nn.Module]) -> FoldedLayer:
    """The layer becomes integers; without a BN it carries its scale and bias itself."""
    weight = weight_codes(layer, layer.weight.detach())
    step, limits, bits = input_codes(layer)
    scale = weight.scale * step
    bias = None if layer.bias is None else layer.bias.detach().clone()
    kind, alone = 'conv' if isinstance(layer, nn.Conv2d) else 'linear', norm is None
    entry = FoldedLayer(
        kind,
        tuple(weight.codes.shape),
        limits,
        bits,
        *weight.integers,
        scaled=alone,
        offset=alone and bias is not None,
        input_grid=affine_grid(layer),
    )
    quantizer = layer.activation_quantizer
    become_folded(layer, entry)
    layer.weight.copy_(weight.codes)
    if isinstance(layer.input_codes, AffineCodes):
        layer.input_codes.copy_(quantizer)
    elif limits is not None:
        layer.input_codes.step.copy_(step)
    if norm is None:
        layer.scale.copy_(scale)
        if bias is not None:
            layer.offset.copy_(bias)
    else:
        _fold_into_norm(norm, scale, bias)
    return entry


def _fold_into_norm(norm: nn.Module, scale: Tensor, bias: Optional[Tensor]) -> None:
    if norm.weight is None:
        norm.weight = nn.Parameter(torch.ones_like(norm.running_mean))
        norm.bias = nn.Parameter(torch.zeros_like(norm.running_mean))
    norm.weight = nn.Parameter(norm.weight * scale, norm.weight.requires_grad)  # new, as it may be tied
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    norm.running_mean.copy_(mean / scale)


@dataclass(frozen=True, eq=False)
class WeightCodes:
    """A weight as integers.

    Attributes:
        codes: shape ``(O, ...)``, float32.
        scale: of each filter, shape ``(O,)``.
        integers: bits, lowest value and distance of the codes; 32 bits: the weight as it is.
    """

    codes: Tensor
    scale: Tensor
    integers: tuple[int, int, int]


def weight_codes(layer: nn.Module, weight: Tensor) -> WeightCodes:
    """The integers of a weight, which has its filters first."""
    quantizer = layer.weight_quantizer
    if not isinstance(quantizer, WeightQuantizer):
        return WeightCodes(weight, weight_scale(layer, weight), (32, 0, 1))
    spec, alpha = quantizer.spec, quantizer.range_of(weight).detach()
    codes = quantize(weight, weight_step(weight, alpha, spec), spec.code_limits, spec.offset)
    lowest, stride = spec.integers
    return WeightCodes((codes + spec.offset) * stride, weight_scale(layer, weight), (spec.bits, lowest, stride))


def weight_scale(layer: nn.Module, weight: Tensor) -> Tensor:
    """What one unit of the weight integers is worth, shape ``(O,)``; ``weight`` has its filters first."""
    quantizer = layer.weight_quantizer
    if not isinstance(quantizer, WeightQuantizer):
        return weight.new_ones(weight.shape[0])
    spec = quantizer.spec
    step = step_of(quantizer.range_of(weight).detach(), spec.levels)
    return per_filter(step, weight.shape[0], spec.group_size) / spec.integers[1]


def input_codes(layer: nn.Module) -> tuple[Tensor, Optional[tuple[int, int]], int]:
    """Input step (one for each filter where channels have a grid each), limits of the input codes, and their bits."""
    quantizer = layer.activation_quantizer
    if isinstance(quantizer, AffineQuantizer):
        step = step_per_filter(quantizer, layer.filters().shape[0])
        return step, quantizer.spec.code_limits(False), quantizer.spec.bits
    if not isinstance(quantizer, ActivationQuantizer):
        return layer.stored_weight().new_ones(()), None, 32
    spec, signed = quantizer.spec, bool(quantizer.signed)
    step = step_of(quantizer.threshold.detach().reshape(()).abs(), spec.levels(signed))
    return step, spec.code_limits(signed), spec.bits
