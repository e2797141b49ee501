"""What all quantized layers share: how quantizers are attached, and how a float layer becomes one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional, Union

import torch
from torch import Tensor, nn

from ..errors import QuantizationError
from ..quant import ActivationSpec, Operand, WeightSpec, make_spec, scale_clip_
from ..quant.specs import FLOAT_BITS
from .quantizers.activation_quantizer import ActivationQuantizer
from .quantizers.affine_quantizer import AffineQuantizer
from .quantizers.quantizer import Quantizer, refuse_symbolic
from .quantizers.state import ModelState
from .quantizers.weight_quantizer import WeightQuantizer

WEIGHT_KEYS = ('weight', 'weight_orig', 'parametrizations.weight.original')
"""Names under which a layer may store its weight; the other two are those of spectral norm and pruning."""

WeightConfig = Union[None, Mapping[str, Any], WeightSpec]
ActivationConfig = Union[None, Mapping[str, Any], ActivationSpec]


if TYPE_CHECKING:
    ModuleMixin = nn.Module
else:  # each layer has the module of torch as another base, and its names of bases are those of the float layer
    ModuleMixin = object


class QuantizedLayer(ModuleMixin):
    """First base of every quantized layer: what the parts that work on the weights of a model may ask of it.

    Attributes:
        folds_as: the kind of folded layer (``'conv'``, ``'linear'``) that computes the same from integer codes;
            None where there is none.
        has_one_weight: whether every call computes with the same quantized weight.
    """

    folds_as: Optional[str] = None
    has_one_weight: bool = True

    def __init__(self, *args, weight: WeightConfig = None, activation: ActivationConfig = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.attach(weight, activation)

    def attach(self, weight: WeightConfig, activation: ActivationConfig, name: str = '') -> None:
        """Add the quantizers; called once, when the layer is made or a float layer becomes a quantized one."""
        attach_quantizers(self, weight, activation, name)

    def filters(self) -> Tensor:
        """What ``weight_quantizer`` quantizes: the weight with its output filters first, shape ``(O, ...)``."""
        return self.weight

    def stored_weight(self) -> nn.Parameter:
        """The parameter behind the weight."""
        if 'parametrizations' in self._modules:  # torch.nn.utils.parametrizations.spectral_norm
            return self.parametrizations.weight.original
        # torch.nn.utils.spectral_norm and torch.nn.utils.prune compute `weight` from `weight_orig`
        stored = self._parameters.get('weight', self._parameters.get('weight_orig'))
        assert stored is not None, 'only layers with such a weight become quantized layers'
        return stored

    def pruned_weight(self) -> Optional[Tensor]:
        """The stored weight without what the mask of ``torch.nn.utils.prune`` takes out; None without a mask."""
        mask = self._buffers.get('weight_mask')
        return None if mask is None else self.stored_weight() * mask

    @torch.no_grad()
    def scale_clip_(self) -> None:
        """Scale-Clip of the stored weight, in place; the bound is that of the weight the layer computes with."""
        quantizer = self.weight_quantizer
        scale_clip_(self.stored_weight(), quantizer.spec, quantizer.kernels, self.pruned_weight())

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self._forget_unfit(state_dict, prefix, args[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)
        if any(prefix + key in state_dict for key in WEIGHT_KEYS):
            self.forget_ranges(state_dict, prefix)

    def _forget_unfit(self, state_dict: dict[str, Any], prefix: str, messages: list[str]) -> None:
        """Let the range start anew that comes with a weight of another shape, which will not be loaded."""
        flag, own = f'{prefix}weight_quantizer.initialized', self._parameters.get('weight')
        saved = state_dict.get(prefix + 'weight')
        if flag in state_dict and saved is not None and own is not None and saved.shape != own.shape:
            state_dict[flag] = torch.zeros_like(state_dict[flag])
            messages.append(f'{prefix}weight_quantizer: its range starts anew, as the weight has another shape')

    def forget_ranges(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Start the ranges anew, as the weight was loaded, unless the state has ranges of the layer ``prefix`` too."""
        if any(key.startswith((f'{prefix}weight_quantizer.', f'{prefix}activation_quantizer.')) for key in state_dict):
            return
        for quantizer in (self.weight_quantizer, self.activation_quantizer):
            if isinstance(quantizer, Quantizer):
                quantizer.forget()

    def register_parameter(self, name: str, param: Optional[nn.Parameter]) -> None:
        if name == 'weight' and 'weight_quantizer' in self._modules and 'weight' in self._parameters:
            raise QuantizationError(
                f'{self.weight_quantizer.layer_name or "a quantized layer"}: its weight would be replaced by another '
                "Parameter, and its ranges would no longer fit (mmcv's fuse_conv_bn and load_state_dict(assign=True) "
                'do so). Copy into it with weight.data.copy_(...) instead; to merge BN into a quantized model use '
                'mmgdrq.fold(model)'
            )
        super().register_parameter(name, param)

    def __delattr__(self, name: str) -> None:
        if name == 'weight' and 'weight_quantizer' in self._modules and 'weight' in self._parameters:
            raise QuantizationError(
                f'{self.weight_quantizer.layer_name or "a quantized layer"}: its weight would be taken out of the '
                'layer. FullyShardedDataParallel does so, to split the weights over the processes; the range of a '
                'group of filters would then be that of a shard. Train with DistributedDataParallel. A '
                'parametrization has to be there before the model is quantized'
            )
        super().__delattr__(name)


def attach_quantizers(
    layer: nn.Module,
    weight: WeightConfig = None,
    activation: ActivationConfig = None,
    name: str = '',
) -> None:
    """Give ``layer`` its ``weight_quantizer`` and ``activation_quantizer``.

    A tensor with ``bits=32`` gets an ``nn.Identity`` in their place.

    Raises:
        QuantizationError: the layer is on the meta device.
    """
    weight_spec = make_spec(WeightSpec, weight, 'weight')
    activation_spec = make_spec(ActivationSpec, activation, 'activation')
    filters = layer.filters()
    if filters.is_meta:  # to_empty() would fill what a quantizer knows with whatever lies in memory
        raise QuantizationError(
            f'{name or "a quantized layer"}: its weight is on the meta device, so quantizers hold nothing. Build '
            'the float model there, call model.to_empty(device=...), then mmgdrq.quantize(model, ...), then load'
        )
    layer.weight_quantizer = WeightQuantizer(weight_spec, filters) if weight_spec.enabled else nn.Identity()
    layer.activation_quantizer = _activation_quantizer(layer, activation_spec, filters)
    state = ModelState()
    for quantizer in (layer.weight_quantizer, layer.activation_quantizer):
        if isinstance(quantizer, Quantizer):
            quantizer.state = state
        quantizer.layer_name = name  # type: ignore[assignment]  # torch expects a tensor or a module
        quantizer.to(filters.device)


def _activation_quantizer(layer: nn.Module, spec: ActivationSpec, filters: Tensor) -> nn.Module:
    if not spec.enabled:
        return nn.Identity()
    if spec.grid == 'affine':
        channels = layer.in_channels if spec.per_channel and is_depthwise(layer) else 0
        return AffineQuantizer(spec, channels, filters.dim() - 2, filters.device)
    return ActivationQuantizer(spec, filters.device)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each filter of a convolution reads one channel."""
    conv = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return conv and layer.groups == layer.in_channels > 1


def operands(layer: nn.Module, x: Tensor) -> tuple[Operand, Operand]:
    """Quantized input and weight of one call of a layer.

    Both are tensors where the layer should compute as it would in float: it is compiled or traced, someone looks
    at the output of its quantizers, or ``layer.one_byte`` is off.
    """
    refuse_symbolic(x)
    quantizers = layer.activation_quantizer, layer.weight_quantizer
    plain = torch.compiler.is_compiling() or torch.jit.is_tracing() or not layer.one_byte or x.numel() == 0
    if plain or any(quantizer._forward_hooks for quantizer in quantizers):
        return layer.activation_quantizer(x), layer.weight_quantizer(layer.weight)
    return _operand(quantizers[0], x, True), _operand(quantizers[1], layer.weight, torch.is_grad_enabled())


def _operand(quantizer: nn.Module, tensor: Tensor, encode: bool) -> Operand:
    return quantizer(tensor) if isinstance(quantizer, nn.Identity) else quantizer(tensor, encode=encode)


def quantize_layer(layer: nn.Module, cls: type, weight: WeightSpec, activation: ActivationSpec, name: str) -> None:
    """Turn a float layer into ``cls`` in place.

    The object stays the same, and with it its Parameters, hooks, aliases in other modules and every
    reference that Python code holds to it; only its class changes and two quantizers are added.
    """
    layer.__class__ = cls
    layer.attach(weight, activation, name)


def built_specs(layer: nn.Module) -> tuple[WeightSpec, ActivationSpec]:
    """What the weight and the input of a quantized layer are quantized to."""
    weight, activation = layer.weight_quantizer, layer.activation_quantizer
    return (
        weight.spec if isinstance(weight, Quantizer) else WeightSpec(bits=FLOAT_BITS),
        activation.spec if isinstance(activation, Quantizer) else ActivationSpec(bits=FLOAT_BITS),
    )


def is_quantized(module: Optional[nn.Module]) -> bool:
    """Whether ``module`` is a quantized layer of mmgdrq."""
    return hasattr(module, 'weight_quantizer') and hasattr(module, 'activation_quantizer')
