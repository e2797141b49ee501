"""Round the weights of a layer so that its output changes least, in place of each to the nearest code.

Source: GPTQ (Frantar et al., ICLR 2023), after Optimal Brain Surgeon: the weights of a filter are rounded one after
another, and the error of each is passed on to those that are not rounded yet, by the inverse of the second moments of
the inputs. It needs these moments only: no labels, no gradients, no stored activations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers import WeightQuantizer
from ..layers.walk import quantized_layers
from ..quant.fake_quant import round_to_grid
from ..quant.weights import weight_step

LARGEST = 4608
"""Weights of a filter above which a layer is left to nearest rounding: its moments would take too much memory."""

DAMPING = 0.01
"""What is added to the diagonal of the moments, in units of its mean."""


class SecondMoments:
    """The second moments of what the filters of a layer are multiplied with, over all calls.

    Args:
        layer: a quantized convolution or linear layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.groups = getattr(layer, 'groups', 1)
        size = layer.weight[0].numel()
        self.sums = torch.zeros(self.groups, size, size, device=layer.weight.device)

    def add(self, x: Tensor) -> None:
        """Add the input of one call, image by image."""
        for image in x.detach().float().split(1) if isinstance(self.layer, nn.Conv2d) else [x.detach().float()]:
            patches = self._patches(image)
            self.sums += patches @ patches.transpose(1, 2)

    def _patches(self, x: Tensor) -> Tensor:
        """What the filters of each group meet, shape ``(groups, size, positions)``."""
        if not isinstance(self.layer, nn.Conv2d):
            return x.reshape(-1, x.shape[-1]).T.unsqueeze(0)
        conv: Any = self.layer  # torch says of its padding that it may be a text
        columns = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        return columns.reshape(self.groups, -1, columns.shape[-1])

    @torch.no_grad()
    def reconstruct(self) -> bool:
        """Round the weight of the layer, in place; False where the layer was not called."""
        if not bool(self.sums.any()):
            return False
        weight, quantizer = self.layer.weight, self.layer.weight_quantizer
        spec, step = quantizer.spec, weight_step(weight, quantizer.range_of(weight), quantizer.spec)
        steps = step.expand_as(weight).flatten(1)[:, :1].reshape(self.groups, -1, 1)
        rows = weight.detach().float().reshape(self.groups, -1, self.sums.shape[-1])
        weight.copy_(round_by_moments(rows, self.sums, steps, spec.code_limits, spec.offset).reshape(weight.shape))
        quantizer.cache.clear()
        return True


def round_by_moments(weight: Tensor, moments: Tensor, step: Tensor, limits: tuple[int, int], offset: float) -> Tensor:
    """Round weights to a grid so that ``sum ((W - Q) x)^2`` gets small.

    Args:
        weight: shape ``(groups, O, N)``.
        moments: sums of ``x x^T``, shape ``(groups, N, N)``.
        step: of each filter, shape ``(groups, O, 1)``.
        limits: lowest and highest code.
        offset: of the grid.

    Returns:
        Values on the grid, in the shape of ``weight``.
    """
    moments = moments.double()
    diagonal = moments.diagonal(dim1=1, dim2=2)
    order = diagonal.mean(0).argsort(descending=True)
    damping = (DAMPING * diagonal.mean(1)).clamp(min=1e-12)
    moments = moments[:, order][:, :, order] + damping[:, None, None] * torch.eye(len(order), device=moments.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    upper = torch.linalg.cholesky(inverse, upper=True)
    rest, rounded = weight.double()[:, :, order], torch.empty_like(weight)
    for number, place in enumerate(order.tolist()):
        column = rest[:, :, number : number + 1]
        values = round_to_grid(column.float(), step, limits, offset)
        rounded[:, :, place] = values[:, :, 0]
        error = (column - values) / upper[:, number, number][:, None, None]
        rest[:, :, number:] -= error * upper[:, number : number + 1, number:]
    return rounded


@contextmanager
def collecting_moments(model: nn.Module) -> Iterator[list[SecondMoments]]:
    """While active, the inputs of the layers that can be reconstructed are added up; the model must be in float.

    Raises:
        ConfigError: there is no such layer.
    """
    moments = [SecondMoments(layer) for layer in quantized_layers(model) if _reason(layer) is None]
    if not moments:
        raise ConfigError(
            'reconstruct: no layer can be reconstructed. It needs convolutions or linear layers with fewer than 8 bits '
            "and weight=dict(range='search')"
        )
    hooks = [m.layer.register_forward_pre_hook(lambda _, args, m=m: m.add(args[0])) for m in moments]
    try:
        yield moments
    finally:
        for hook in hooks:
            hook.remove()


def _reason(layer: nn.Module) -> Optional[str]:
    """Why a layer is left to nearest rounding; None where it is reconstructed."""
    quantizer = layer.weight_quantizer
    if not isinstance(quantizer, WeightQuantizer) or quantizer.spec.bits >= 8 or not quantizer.stateful:
        return 'its weight is not searched at fewer than 8 bits'
    if layer.folds_as is None or layer._parameters.get('weight') is None:
        return 'its forward pass is not that of a plain convolution or linear layer'
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != 'zeros' or isinstance(layer.padding, str)):
        return 'its padding is not of zeros'
    return 'its filters are too large' if layer.weight[0].numel() > LARGEST else None
