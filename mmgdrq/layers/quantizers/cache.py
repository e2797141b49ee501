"""A weight that has not changed is not quantized again."""

from typing import Any, Callable, Optional

import torch
from torch import Tensor

from ...kernels import cpu
from ...kernels.scratch import dense
from ...quant import Encoded


class WeightCache:
    """Keeps the quantized form of one weight.

    While a managed model trains, the codes live for one iteration, for the calls of a shared head and the
    recomputation of activation checkpointing, so that changes through ``weight.data``, which torch does not count,
    take effect in the next one. In evaluation with gradients nothing is kept. Without gradients and on a CPU the
    values live until the weight changes: its memory, its version counter, or (for ``weight.data``) its checksum.

    Attributes:
        enabled: whether anything is kept.
    """

    def __init__(self) -> None:
        self.enabled = True
        self._codes: Optional[tuple[Any, Any]] = None
        self._values: Optional[tuple[Any, Tensor]] = None

    def clear(self) -> None:
        """Forget the weight."""
        self._codes = self._values = None

    def operand(self, weight: Tensor, encode: Callable[[Tensor], Encoded]) -> Encoded:
        """The weight as an operand of a layer, by ``encode`` or from the codes that are kept.

        Someone has to clear the cache before every training iteration.
        """
        if not self.enabled:
            return encode(weight)
        key, kept = _key(weight), self._codes
        if kept is not None and kept[0] == key:
            return Encoded(kept[1].values('weight'), kept[1])
        operand = encode(weight)
        self.clear()
        self._codes = key, operand.codes
        return operand

    def values(self, quantize: Callable[[Tensor], Tensor], weight: Tensor, *ranges: Tensor) -> Tensor:
        """The fake-quantized weight for evaluation, by ``quantize`` or as it was kept.

        Args:
            quantize: gives the values for ``weight``.
            ranges: other tensors that the values depend on.
        """
        if not self.enabled or weight.device.type != 'cpu' or torch.jit.is_tracing():
            return quantize(weight)
        key = tuple(map(_key, (weight, *ranges)))
        if None in key:
            return quantize(weight)
        state = key, tuple(map(_checksum, (weight, *ranges)))
        kept = self._values  # one object: another thread may replace it at any time
        if kept is None or kept[0] != state:
            kept = state, quantize(weight)
            self.clear()
            self._values = kept
        return kept[1]

    def __getstate__(self) -> dict:
        return dict(enabled=self.enabled)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.clear()


def _key(weight: Tensor) -> Optional[tuple]:
    if weight.is_inference() or torch.compiler.is_compiling():
        return None
    return weight.data_ptr(), weight._version, weight.shape, weight.dtype


def _checksum(tensor: Tensor) -> tuple[int, ...]:
    """Numbers that depend on every bit of a CPU tensor and on its place: one pass, without a copy."""
    return cpu.checksum(dense(tensor.detach()))
