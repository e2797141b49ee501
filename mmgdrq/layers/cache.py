"""A weight that has not changed is not quantized again."""

from typing import Callable, Optional

import torch
from torch import Tensor

from ..quant import Encoded, native
from ..quant.scratch import dense


class WeightCache:
    """Keeps the quantized form of one weight.

    While a managed model trains, the codes live for one iteration, for the calls of a shared head and the
    recomputation of activation checkpointing, so that changes through ``weight.data``, which torch does not count,
    take effect in the next one. In evaluation with gradients nothing is kept. Without gradients and on a CPU the
    values live until the weight changes: its memory, its version counter, or (for ``weight.data``) its checksum.

    Attributes:
        enabled: whether anything is kept.
        per_iteration: whether someone clears the cache before every training iteration.
    """

    def __init__(self) -> None:
        self.enabled = True
        self.per_iteration = False
        self.clear()

    def clear(self) -> None:
        """Forget the weight."""
        self._codes = self._values = self._key = self._checksum = None

    def operand(self, weight: Tensor, encode: Callable[[Tensor], Encoded]) -> Encoded:
        """The weight as an operand of a layer, by ``encode`` or from the codes that are kept."""
        if not (self.enabled and self.per_iteration):
            return encode(weight)
        if self._codes is not None and self._key == _key(weight):
            return Encoded(self._codes.values('weight'), self._codes)
        operand = encode(weight)
        self.clear()
        self._codes, self._key = operand.codes, _key(weight)
        return operand

    def values(self, quantize: Callable[[Tensor], Tensor], weight: Tensor, *ranges: Tensor) -> Tensor:
        """The fake-quantized weight for evaluation, by ``quantize`` or as it was kept.

        Args:
            quantize: gives the values for ``weight``.
            ranges: other tensors that the values depend on.
        """
        key = tuple(map(_key, (weight, *ranges)))
        if not self.enabled or None in key or weight.device.type != 'cpu' or torch.jit.is_tracing():
            return quantize(weight)
        checksum = tuple(map(_checksum, (weight, *ranges)))
        if self._values is None or (self._key, self._checksum) != (key, checksum):
            values = quantize(weight)
            self.clear()
            self._values, self._key, self._checksum = values, key, checksum
        return self._values

    def __getstate__(self) -> dict:
        return dict(enabled=self.enabled, per_iteration=self.per_iteration)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.clear()


def _key(weight: Tensor) -> Optional[tuple]:
    if weight.is_inference() or torch.compiler.is_compiling():
        return None
    return weight.data_ptr(), weight._version, weight.shape, weight.dtype


def _checksum(tensor: Tensor) -> tuple[int, ...]:
    """Numbers that depend on every bit of a CPU tensor and on its place: one pass, without a copy."""
    data = dense(tensor.detach())
    if native.built():
        return (native.checksum(data),)
    flat = data.as_strided((data.numel(),), (1,)).view(torch.uint8).long()
    return flat.sum().item(), flat.mul_(torch.arange(1, flat.numel() + 1)).sum().item()
