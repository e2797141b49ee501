"""Rules that choose the range of a group, and Scale-Clip.

Source: GDRQ's groups and its Scale-Clip threshold ``T = k * mean|W|``.
"""

from typing import Optional

import torch
from torch import Tensor

from ..kernels.dispatch import operators
from .fake_quant import step_of
from .groups import broadcast_filters, group_mean_abs, per_filter
from .specs import WeightSpec


def weight_step(weight: Tensor, alpha: Tensor, spec: WeightSpec) -> Tensor:
    """Step of every filter, shaped to broadcast against ``weight`` of shape ``(O, ...)``.

    Args:
        alpha: shape ``(G,)``.
    """
    steps = per_filter(step_of(alpha, spec.levels), weight.shape[0], spec.group_size)
    return broadcast_filters(steps, weight)


def scale_clip_(weight: Tensor, spec: WeightSpec, kernels: bool = True, used: Optional[Tensor] = None) -> Tensor:
    """Scale-Clip: project ``weight`` in place to ``[-T_g, T_g]`` with ``T_g = k * mean|W_g|``, zeros left out.

    Args:
        weight: shape ``(O, ...)``; changed in place, outside of autograd.
        kernels: whether kernels may be used.
        used: what the layer computes with, whose mean gives the bound, in the shape of ``weight``, such as a pruned
            weight without what is masked; None: ``weight`` itself.

    >>> w = torch.tensor([[1., -1., 1., -9.]])
    >>> scale_clip_(w, WeightSpec(k=2.0))
    tensor([[ 1., -1.,  1., -6.]])
    """
    with torch.no_grad():
        bound = None
        if spec.group_size != 1 or used is not None:
            bound = group_mean_abs(weight if used is None else used, spec.group_size, kernels) * spec.clip_multiplier
            bound = per_filter(bound, weight.shape[0], spec.group_size).contiguous()
        operators(kernels).clip_rows(weight, bound, spec.clip_multiplier)
        return weight
