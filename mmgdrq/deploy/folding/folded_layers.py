"""Folded layers: integer weights, integer inputs; the scale sits in BN or in one factor per filter."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from ...errors import QuantizationError
from ...layers.walk import all_modules
from ...quant import quantize
from ...quantized_model.replaced_layers import remember_layers
from ...quantized_model.state import FROZEN, STAGE, is_root
from .affine_inputs import AffineCodes

STORED = 'stored'
"""Kind of a layer without a folded form: its forward pass stays as it is, with the weight from integer codes."""


@dataclass(frozen=True)
class FoldedLayer:
    """What a quantized layer became.

    Attributes:
        kind: ``'conv'``, ``'linear'`` or :data:`STORED`.
        shape: of the filters, ``(O, ...)``.
        input: lowest and highest input code; None: a float input.
        input_bits: bits of the input codes; 32: a float input.
        weight_bits, weight_lowest, weight_stride: of the weight integers, see :func:`mmgdrq.quant.pack`; 32 bits: a
            float weight.
        scaled: whether the layer itself carries one scale per filter.
        offset: whether it carries one additive term per filter.
        norm: name of the BN that carries its scale; None: it carries it itself.
        input_grid: number of channels that have an input grid each (0: one for all), and of dimensions behind them;
            None: the input has no zero point.
    """

    kind: str
    shape: tuple[int, ...]
    input: Optional[tuple[int, int]]
    input_bits: int
    weight_bits: int
    weight_lowest: int
    weight_stride: int
    scaled: bool = False
    offset: bool = False
    norm: Optional[str] = None
    input_grid: Optional[tuple[int, int]] = None

    @property
    def integers(self) -> tuple[int, int, int]:
        """Bits, lowest value and distance of the integers of the weight."""
        return self.weight_bits, self.weight_lowest, self.weight_stride

    def as_json(self) -> dict[str, Any]:
        """The layer as json holds it."""
        values = asdict(self)
        if self.input_grid is None:
            del values['input_grid']
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> 'FoldedLayer':
        """Read what :meth:`as_json` wrote.

        Raises:
            ValueError: a key is unknown or missing, or a value of another type.
        """
        names = {field.name for field in fields(cls)}
        different = (set(values) ^ names) - {'input_grid'}
        if different:
            raise ValueError(f'the keys {sorted(different)} are unknown or missing')
        return cls(**{name: _read(name, value) for name, value in values.items()})


Numbers = (list, tuple)
_TYPES: dict[str, Union[type, tuple[type, ...]]] = {
    'kind': str,
    'shape': Numbers,
    'input': (*Numbers, type(None)),
    'scaled': bool,
    'offset': bool,
    'norm': (str, type(None)),
    'input_grid': Numbers,
}


def _read(name: str, value: Any) -> Any:
    expected = _TYPES.get(name, int)
    numbers = value if isinstance(value, Numbers) else [value] if expected is int else []
    if not isinstance(value, expected) or any(type(number) is not int for number in numbers):
        raise ValueError(f'{name} is {value!r}')
    return tuple(value) if isinstance(value, Numbers) else value


class CodeQuantizer(nn.Module):
    """Turns an input into integer codes ``clip(round(x / step))``, held in float32.

    Args:
        lowest, highest: the codes' limits.

    Buffers: ``step``, scalar.
    """

    def __init__(self, lowest: int, highest: int) -> None:
        super().__init__()
        self.limits = (lowest, highest)
        self.register_buffer('step', torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return quantize(x, self.step, self.limits)

    def extra_repr(self) -> str:
        return f'limits={self.limits}'


class RoundedInput(CodeQuantizer):
    """Rounds an input to its grid: codes times step, written in operators that every exporter knows."""

    def forward(self, x: Tensor) -> Tensor:
        return (x / self.step).round().clamp(*self.limits) * self.step


def in_float32(layer: nn.Module, x: Tensor) -> torch.autocast:
    """Switch autocast off: sums of integers pass the largest float16, and bfloat16 does not tell neighbours apart.

    Raises:
        QuantizationError: the layer itself was converted to another type.
    """
    if layer.weight.dtype != torch.float32:
        raise QuantizationError(
            f'a folded {"convolution" if isinstance(layer, nn.Conv2d) else "linear layer"} was converted to '
            f'{layer.weight.dtype}; expected float32, in which its integers are exact. Fold again, and leave out '
            '.half(), .bfloat16() and .double(); autocast may stay on'
        )
    return torch.autocast(x.device.type, enabled=False)


class FoldedConv2d(nn.Conv2d):
    """A convolution with integer weights and inputs; see :func:`become_folded` for its other buffers."""

    def forward(self, input: Tensor) -> Tensor:
        with in_float32(self, input):
            y = self._conv_forward(self.input_codes(input.float()), self.weight, None)
            return rescale(y, self.scale, self.offset, channel=y.dim() - 3)


class FoldedLinear(nn.Linear):
    """A linear layer with integer weights and inputs; see :func:`become_folded` for its other buffers."""

    def forward(self, input: Tensor) -> Tensor:
        with in_float32(self, input):
            y = F.linear(self.input_codes(input.float()), self.weight)
            return rescale(y, self.scale, self.offset, channel=y.dim() - 1)


FOLDED = {'conv': FoldedConv2d, 'linear': FoldedLinear}
STORED_TYPES = {STAGE: torch.int64, 'signed': torch.bool, 'initialized': torch.bool}
"""Buffers of quantized models that averages need as floats -> what they are in files of deployed models."""


class StoredWeight(nn.Module):
    """In the place of a weight quantizer: the quantized weight, whatever the float one is.

    Args:
        shape: of the filters, ``(O, ...)``.

    Buffers: integer ``codes`` held in float32, and one ``scale`` a filter.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer('codes', torch.zeros(tuple(shape)))
        self.register_buffer('scale', torch.ones(shape[0]))

    def forward(self, weight: Tensor, encode: bool = False) -> Tensor:
        return rescale(self.codes, self.scale, None, channel=0).to(weight.dtype)


def rescale(y: Tensor, scale: Optional[Tensor], offset: Optional[Tensor], channel: int) -> Tensor:
    """``y * scale + offset`` along dimension ``channel``; None leaves a part out."""
    shape = [1] * y.dim()
    shape[channel] = -1
    if scale is not None:
        y = y * scale.reshape(shape)
    return y if offset is None else y + offset.reshape(shape)


def become_folded(layer: nn.Module, entry: FoldedLayer) -> None:
    """Turn a quantized (or float) layer into the folded form that an entry describes, in place.

    Buffers ``scale`` and ``offset``, where it has them, have shape ``(O,)``.

    Args:
        layer: a quantized layer of the right shape.
        entry: what it becomes.
    """
    if entry.kind == STORED:
        if entry.weight_bits <= 8:
            layer.weight_quantizer = StoredWeight(entry.shape).to(layer.stored_weight().device)
        return
    apply_masks(layer)
    for name in ('weight_quantizer', 'activation_quantizer'):
        layer._modules.pop(name, None)
    layer.__class__ = FOLDED[entry.kind]
    filters, device = layer.weight.shape[0], layer.weight.device
    # a Parameter of its own: the old one may be tied to other layers
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    layer.register_parameter('bias', None)
    layer.input_codes = _input_codes(entry)
    layer.register_buffer('scale', torch.ones(filters) if entry.scaled else None)
    layer.register_buffer('offset', torch.zeros(filters) if entry.offset else None)
    layer.to(device)


def apply_masks(layer: nn.Module) -> None:
    """Make the masks of ``torch.nn.utils.prune`` permanent: the parameters become what the layer computes with."""
    for hook in list(layer._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(layer, hook._tensor_name)


def _input_codes(entry: FoldedLayer) -> nn.Module:
    if entry.input_grid is not None:
        return AffineCodes(entry.input_bits, *entry.input_grid)
    return CodeQuantizer(*entry.input) if entry.input else nn.Identity()


def become_folded_model(model: nn.Module, layers: Mapping[str, FoldedLayer]) -> None:
    """Note at the root of a model what its layers became; a quantized model inside it no longer expects them."""
    model.gdrq_folded = dict(layers)  # type: ignore[assignment]  # torch expects a tensor or a module
    for module in all_modules(model):
        if is_root(module):
            remember_layers(module)
            module._buffers.pop(FROZEN, None)  # it does not train
        for name, dtype in STORED_TYPES.items():
            held = module._buffers.get(name)
            if held is not None:
                module._buffers[name] = held.to(dtype)


def unread_parameters(folded: nn.Module) -> list[str]:
    """Names of the float parameters that no forward pass reads any more: those behind stored weights."""
    layers = [m for m in all_modules(folded) if isinstance(getattr(m, 'weight_quantizer', None), StoredWeight)]
    parameters = {id(layer.stored_weight()): layer.stored_weight() for layer in layers}
    readers = {id(layer) for layer in layers} | {id(owner) for layer in layers for owner in getattr(layer, 'owner', ())}
    for module in all_modules(folded):
        if id(module) not in readers:
            for parameter in module._parameters.values():
                parameters.pop(id(parameter), None)
    return [name for name, p in folded.named_parameters(remove_duplicate=False) if id(p) in parameters]
