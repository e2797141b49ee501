"""Bring BN into the folded layers: engines fuse convolution and BN anyway, and then every layer is one block."""

import copy

import torch
from torch import Tensor, nn

from ...errors import FoldError
from .folded_layers import STORED


def merge_norms(folded: nn.Module) -> nn.Module:
    """Return a copy of a folded model in which every folded layer carries its BN.

    Each folded layer then (but not a stored one) has ``scale`` and ``offset``, one value per filter, and computes
    ``scale * layer(codes) + offset``; its BN is an ``nn.Identity``. A scale may be negative or zero, as gamma may.

    Args:
        folded: result of :func:`mmgdrq.fold`.

    Raises:
        FoldError: ``folded`` is not a folded model.
    """
    if not hasattr(folded, 'gdrq_folded'):
        raise FoldError('merge_norms: the model is not folded. Call mmgdrq.fold(model) first')
    merged = copy.deepcopy(folded).eval()
    modules = dict(merged.named_modules())
    for name, entry in merged.gdrq_folded.items():
        if entry.kind == STORED:
            continue
        layer, norm = modules[name], entry.norm
        scale, offset = _affine(modules[norm]) if norm else (layer.scale, layer.offset)
        layer.scale = layer.weight.new_ones(layer.weight.shape[0]) if scale is None else scale.detach().clone()
        layer.offset = torch.zeros_like(layer.scale) if offset is None else offset.detach().clone()
        if norm:
            parent, _, attribute = norm.rpartition('.')
            setattr(merged.get_submodule(parent), attribute, nn.Identity())
    return merged


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale
