"""Which float layers have a quantized counterpart, and which weights cannot be quantized.

Classes outside torch are named, not imported.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn

from .attention import MultiheadAttention
from .base import is_quantized
from .conv import Conv2d
from .conv_nd import Conv1d, Conv3d
from .custom_forward import CustomForward, called_operation
from .functional_weight import FunctionalWeight, derive
from .linear import Linear
from .standardized import ConvAWS2d, ConvWS2d, SAConv2d
from .transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from .walk import all_modules
from .weight_readers import ReadConv2d, ReadLinear, Reads, read_quantized


@dataclass(frozen=True)
class Replacement:
    """How a float layer becomes a quantized one.

    Attributes:
        kind: ``'conv'`` or ``'linear'``.
        cls: class of the quantized layer.
        float_input: why the input is not quantized; empty where it is.
    """

    kind: str
    cls: type
    float_input: str = ''


PLAIN: dict[type[nn.Module], tuple[str, type]] = {
    nn.Conv1d: ('conv', Conv1d),
    nn.Conv2d: ('conv', Conv2d),
    nn.Conv3d: ('conv', Conv3d),
    nn.ConvTranspose1d: ('conv', ConvTranspose1d),
    nn.ConvTranspose2d: ('conv', ConvTranspose2d),
    nn.ConvTranspose3d: ('conv', ConvTranspose3d),
    nn.Linear: ('linear', Linear),
}
"""torch's layers, and so every subclass that does not change the forward pass."""

WRAPPERS: dict[str, type] = {
    'mmcv.cnn.bricks.wrappers.Conv2d': nn.Conv2d,
    'mmcv.cnn.bricks.wrappers.Conv3d': nn.Conv3d,
    'mmcv.cnn.bricks.wrappers.ConvTranspose2d': nn.ConvTranspose2d,
    'mmcv.cnn.bricks.wrappers.ConvTranspose3d': nn.ConvTranspose3d,
    'mmcv.cnn.bricks.wrappers.Linear': nn.Linear,
    'timm.layers.linear.Linear': nn.Linear,
}
"""Subclasses whose forward pass does the same as that of torch's layer."""

BEHAVIOURS: dict[str, tuple[str, type]] = {
    'mmcv.cnn.bricks.conv2d_adaptive_padding.Conv2dAdaptivePadding': ('conv', FunctionalWeight),
    'mmcv.cnn.bricks.conv_ws.ConvWS2d': ('conv', ConvWS2d),
    'mmcv.cnn.bricks.conv_ws.ConvAWS2d': ('conv', ConvAWS2d),
    'mmcv.ops.saconv.SAConv2d': ('conv', SAConv2d),
    'mmcv.ops.deform_conv.DeformConv2d': ('conv', FunctionalWeight),
    'mmcv.ops.deform_conv.DeformConv2dPack': ('conv', FunctionalWeight),
    'mmcv.ops.modulated_deform_conv.ModulatedDeformConv2d': ('conv', FunctionalWeight),
    'mmcv.ops.modulated_deform_conv.ModulatedDeformConv2dPack': ('conv', FunctionalWeight),
    'mmcv.ops.masked_conv.MaskedConv2d': ('conv', FunctionalWeight),
    'mmdet.models.backbones.trident_resnet.TridentConv': ('conv', FunctionalWeight),
    # cosine layers: normalizing a quantized filter again only changes its step
    'mmdet.models.layers.normed_predictor.NormedLinear': ('linear', FunctionalWeight),
    'mmdet.models.layers.normed_predictor.NormedConv2d': ('conv', FunctionalWeight),
    'mmpretrain.models.heads.margin_head.NormProduct': ('linear', FunctionalWeight),
}
"""Layers with a forward pass of their own -> their kind and what makes them quantized."""

SPARSE_CONV = 'mmpretrain.models.utils.sparse_modules.SparseConv2d'
"""Its forward pass calls ``super(type(self), self)``, so it has to stay the first one."""

FLOAT_INPUTS = {'mmcv.ops.saconv.SAConv2d': 'input in float: the layer adds global context to it first'}

READERS: dict[str, Reads] = {
    'mmseg.models.backbones.beit.BEiTAttention': (('qkv', 'x'),),
    'mmpretrain.models.utils.attention.BEiTAttention': (('qkv', 'x'),),
    'mmpretrain.models.utils.attention.WindowMSAV2': (('qkv', 'x'),),
    'mmpretrain.models.utils.attention.CrossMultiheadAttention': (('q', 'x'), ('k', 'k'), ('v', 'v')),
    'mmdet.models.dense_heads.tood_head.TaskDecomposition': (('reduction_conv.conv', 'feat'),),
}
"""Modules that read the weights of children -> these children and the arguments that the weights are applied to; also
their subclasses that keep the forward pass."""

UNREADABLE: dict[str, tuple[str, ...]] = {
    'torch.nn.modules.transformer.TransformerEncoderLayer': ('self_attn', 'self_attn.out_proj', 'linear1', 'linear2'),
    'torchvision.models.swin_transformer.ShiftedWindowAttention': ('qkv', 'proj'),
    'torchvision.models.video.swin_transformer.ShiftedWindowAttention3d': ('qkv', 'proj'),
    'mmpretrain.models.multimodal.chinese_clip.chinese_clip.AttentionPool2d': ('q_proj', 'k_proj', 'v_proj', 'c_proj'),
}
"""Modules, and so their subclasses, that read the weights of children in a way that quantization cannot follow (torch's
fast paths)."""

SAN_RECOGNITION = 'mmseg.models.decode_heads.san_head.RecWithAttnbias'
"""With ``cross_attn`` it computes the attention of its layers from their weights."""


def class_path(cls: type) -> str:
    """Full name of a class."""
    return f'{cls.__module__}.{cls.__qualname__}'


def replacement(layer: nn.Module) -> Optional[Replacement]:
    """How ``layer`` becomes a quantized layer, judged by itself; None where it cannot.

    >>> replacement(nn.Linear(2, 2)).cls.__module__
    'mmgdrq.layers.linear'
    >>> replacement(nn.LSTM(2, 2)) is None
    True
    """
    path, cls = class_path(type(layer)), type(layer)
    if cls is nn.MultiheadAttention:
        return Replacement('linear', MultiheadAttention)
    if path in WRAPPERS:
        return Replacement(*PLAIN[WRAPPERS[path]])
    if path in BEHAVIOURS:
        kind, behaviour = BEHAVIOURS[path]
        return Replacement(kind, derive(cls, behaviour), FLOAT_INPUTS.get(path, ''))
    if path == SPARSE_CONV:
        return Replacement('conv', derive(cls, Conv2d, own=('forward',)))
    if cls in PLAIN:
        return Replacement(*PLAIN[cls])
    for base, (kind, quantized) in PLAIN.items():
        if isinstance(layer, base):
            if _same_forward(cls, base):
                return Replacement(kind, derive(cls, quantized))
            if not is_quantized(layer) and called_operation(layer) is not None:
                return Replacement(kind, derive(cls, CustomForward))
    return None


def replacements(model: nn.Module) -> dict[str, Replacement]:
    """Name -> replacement, for the layers of ``model`` that have one; children that are read included."""
    found = {name: replacement(module) for name, module in model.named_modules()}
    for prefix, parent in model.named_modules():
        for child, _ in _reads(parent):
            name = f'{prefix}.{child}' if prefix else child
            own = found.get(name)
            if own is not None:
                found[name] = Replacement(own.kind, ReadLinear if own.kind == 'linear' else ReadConv2d)
    return {name: how for name, how in found.items() if how is not None}


def let_parents_read(model: nn.Module) -> None:
    """Let the parents that read weights of quantized children read the quantized ones."""
    for parent in list(all_modules(model)):
        reads = _reads(parent)
        if any(is_quantized(parent.get_submodule(child)) for child, _ in reads):
            read_quantized(parent, reads)


def float_reason(layer: nn.Module) -> str:
    """Why ``layer``, judged by itself, cannot be quantized; empty where it can."""
    if is_quantized(layer) or isinstance(layer, MultiheadAttention):
        return 'is a quantized layer already'
    if _is_patched(layer):
        return 'its forward pass was replaced on the object (as accelerate does), and would bypass quantization'
    if _is_constant(layer):
        return 'a constant operator (its weight is 0, 1, 2, ...), which stays exact'
    if isinstance(layer, nn.MultiheadAttention) and (layer.bias_k is not None or layer.add_zero_attn):
        return 'attention with add_bias_kv or add_zero_attn is not supported'
    if replacement(layer) is None:
        return f'{type(layer).__name__} has no quantized counterpart'
    if not _has_known_weight(layer):
        return 'its weight is computed from other parameters (weight norm, a parametrization or a mask)'
    return ''


def read_reasons(model: nn.Module) -> dict[str, str]:
    """Name -> why a parent keeps that layer from being quantized."""
    reasons = {}
    for prefix, parent in model.named_modules():
        children = _unreadable(parent)
        if _listed((SAN_RECOGNITION,), parent) and parent.cross_attn:
            attentions = [f'layers.{i}.attentions.0.attn' for i in range(len(parent.layers))]
            children = [*attentions, *(f'{name}.out_proj' for name in attentions)]
        if isinstance(parent, nn.MultiheadAttention) and float_reason(parent):
            children = ('out_proj',)
        for child in children:
            name = f'{prefix}.{child}' if prefix else child
            reasons[name] = f'{type(parent).__name__} reads this weight without calling the layer'
    return reasons


def _listed(paths: Container[str], module: nn.Module) -> Optional[type[nn.Module]]:
    """The class of a module, or else its nearest base, that is listed by its full name; None where none is."""
    return next((cls for cls in type(module).__mro__ if class_path(cls) in paths), None)


def _reads(parent: nn.Module) -> Reads:
    known = _listed(READERS, parent)
    if not known or type(parent).forward is not known.forward or _is_patched(parent):
        return ()
    return READERS[class_path(known)]


def _unreadable(parent: nn.Module) -> Iterable[str]:
    known = _listed(UNREADABLE, parent)
    if known:
        return UNREADABLE[class_path(known)]
    known = _listed(READERS, parent)
    return [child for child, _ in READERS[class_path(known)]] if known and not _reads(parent) else ()


def _is_patched(module: nn.Module) -> bool:
    return 'forward' in vars(module) or '_conv_forward' in vars(module)


def _is_constant(layer: nn.Module) -> bool:
    """Whether it computes an expectation over 0, 1, 2, ..., as the fixed projection of YOLOv8's head does."""
    weight = layer._parameters.get('weight')
    if not isinstance(layer, nn.modules.conv._ConvNd) or weight is None or weight.requires_grad or weight.is_meta:
        return False
    values = weight.detach().flatten()
    return len(values) > 2 and torch.equal(values, torch.arange(len(values)).to(values))


def _same_forward(cls: type[nn.Module], base: type[nn.Module]) -> bool:
    return cls.forward is base.forward and getattr(cls, '_conv_forward', 0) is getattr(base, '_conv_forward', 0)


def _has_known_weight(layer: nn.Module) -> bool:
    """Whether the weight is a parameter, or one divided by its spectral norm or masked by pruning."""
    if isinstance(layer, nn.MultiheadAttention):
        separate = [layer._parameters.get(f'{part}_proj_weight') for part in 'qkv']
        return layer._parameters.get('in_proj_weight') is not None or None not in separate
    chain = getattr(getattr(layer, 'parametrizations', None), 'weight', None)
    if chain is not None:
        return len(chain) == 1 and type(chain[0]).__name__ == '_SpectralNorm'
    return any(layer._parameters.get(name) is not None for name in ('weight', 'weight_orig'))
