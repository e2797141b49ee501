"""Quantized attention: ``nn.MultiheadAttention`` holds its weights itself and never calls its ``out_proj``."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import QuantizationError
from ..quant import ActivationSpec, WeightSpec, scale_clip_
from .base import ActivationConfig, QuantizedLayer, WeightConfig, is_quantized, quantize_layer
from .walk import all_modules

PROJECTIONS = ('q_proj', 'k_proj', 'v_proj')
"""The quantized parts of a ``MultiheadAttention``, beside its ``out_proj``."""


class Projection(QuantizedLayer, nn.Module):
    """The query, key or value projection of an attention, whose parameters it reads and does not own.

    Args:
        owner: the attention.
        index: 0 for queries, 1 for keys, 2 for values.
        weight, activation: as for :class:`mmgdrq.Linear`.
        name: of the layer.
    """

    def __init__(
        self,
        owner: nn.MultiheadAttention,
        index: int,
        weight: WeightConfig,
        activation: ActivationConfig,
        name: str,
    ) -> None:
        nn.Module.__init__(self)
        self.owner = (owner,)  # in a tuple: not a child module
        self.index = index
        self.attach(weight, activation, name)  # only now, as it reads the owner's weight

    @property
    def weight(self) -> Tensor:
        packed = self.owner[0].in_proj_weight
        return self.stored_weight() if packed is None else packed.chunk(3)[self.index]

    @property
    def bias(self) -> Optional[Tensor]:
        packed = self.owner[0].in_proj_bias
        return None if packed is None else packed.chunk(3)[self.index]

    def stored_weight(self) -> nn.Parameter:
        packed = self.owner[0].in_proj_weight
        return getattr(self.owner[0], f'{"qkv"[self.index]}_proj_weight') if packed is None else packed

    @torch.no_grad()
    def scale_clip_(self) -> None:
        scale_clip_(self.weight, self.weight_quantizer.spec, self.weight_quantizer.kernels)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.activation_quantizer(input), self.weight_quantizer(self.weight), self.bias)


class MultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that calls its four projections as layers; the attention itself is float.

    Shape:
        as ``nn.MultiheadAttention``. Without ``add_bias_kv`` and ``add_zero_attn``.
    """

    def attach(self, weight: WeightConfig, activation: ActivationConfig, name: str) -> None:
        """Add the three projections with their quantizers; ``out_proj`` is a layer of its own."""
        for index, part in enumerate(PROJECTIONS):
            self.add_module(part, Projection(self, index, weight, activation, f'{name}.{part}'))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        for part in PROJECTIONS:
            if any(prefix + key in state_dict for key in ('in_proj_weight', f'{part}_weight')):
                self.get_submodule(part).forget_ranges(state_dict, f'{prefix}{part}.')

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Optional[Tensor] = None,
        need_weights: bool = True,
        attn_mask: Optional[Tensor] = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Optional[Tensor]]:
        if is_causal and attn_mask is None:
            raise QuantizationError('MultiheadAttention: is_causal is a hint about attn_mask and needs one')
        batched = query.dim() == 3
        query, key, value = (self._batch_first(x, batched) for x in (query, key, value))
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        mask = self._merged_mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            x = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            x = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        x = self.out_proj(x.transpose(1, 2).flatten(2))
        return self._batch_first(x, batched) if batched else x.squeeze(0), weights

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        """From the caller's order of dimensions to ``(N, L, E)``; for batches also back."""
        if not batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _heads(self, x: Tensor) -> Tensor:
        """``(N, L, E)`` as ``(N, heads, L, E / heads)``."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _merged_mask(self, attention: Optional[Tensor], padding: Optional[Tensor], q: Tensor) -> Optional[Tensor]:
        """One additive mask that broadcasts to ``(N, heads, L, S)``."""
        mask = None
        if attention is not None:
            mask = _additive(attention, q.dtype)
            if mask.dim() == 3:
                mask = mask.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            padding = _additive(padding, q.dtype)
            padding = padding.reshape(-1, 1, 1, padding.shape[-1])
            mask = padding if mask is None else mask + padding
        return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask, true where attention is not allowed, as one to add; others as they are."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float('-inf'))


def call_projections(model: nn.Module) -> None:
    """Let every float attention whose ``out_proj`` is quantized call it; its other projections stay in float."""
    for module in all_modules(model):
        if type(module) is nn.MultiheadAttention and is_quantized(module.out_proj):
            quantize_layer(module, MultiheadAttention, WeightSpec(bits=32), ActivationSpec(bits=32), '')
