"""A look, now and then, at what the fixed decisions about a range do to the data, and at layers that nothing calls."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..layers.quantizers.activation_quantizer import ActivationQuantizer
from ..layers.quantizers.state import FLOAT, QUANTIZE

FIRST_LOOK = 10
"""Iterations before the first look."""

INTERVAL = 500
"""Iterations between two looks; other iterations cost nothing."""

SHARE = 0.01
"""Share of negative elements from which an unsigned grid is reported."""

NEGATIVE, NOT_FINITE, NO_RANGE = 'negative', 'not finite', 'no range'


class RangeCheck:
    """One look at the inputs of all layers during an iteration.

    Args:
        model: whose layers are looked at.
        named: layers that were reported before, with the reason; those of this look are added.
    """

    def __init__(self, model: nn.Module, named: set[tuple[str, str]]) -> None:
        self.named = named
        self.counts: dict[str, Tensor] = {}
        self.handles = [q.register_forward_pre_hook(self._look(name)) for name, q in _quantizers(model)]

    def _look(self, name: str) -> Callable[..., None]:
        @torch.no_grad()
        def look(quantizer: ActivationQuantizer, args: tuple) -> None:
            x = args[0]
            if x.numel() and quantizer.mode == QUANTIZE and quantizer.is_ready():
                counts = torch.stack([(x < 0).sum(), torch.tensor(x.numel(), device=x.device), (x * 0 != 0).sum()])
                self.counts[name] = self.counts.get(name, 0) + counts

        return look

    def end(self) -> None:
        """Look at nothing any more."""
        for handle in self.handles:
            handle.remove()

    def findings(self, model: nn.Module) -> Iterator[str]:
        """End, and give a sentence for every layer that stands out and was not named before."""
        self.end()
        quantizers = dict(_quantizers(model))
        counts = torch.stack([*self.counts.values()]).tolist() if self.counts else []
        for name, (negative, count, strange) in zip(self.counts, counts):
            if strange:
                yield from self._once(name, NOT_FINITE, 'holds NaN or Inf; its threshold stays where it is')
            elif not bool(quantizers[name].signed) and negative > SHARE * count:
                yield from self._once(
                    name,
                    NEGATIVE,
                    f'is negative in {negative / count:.0%} of its elements, which the unsigned grid of its first '
                    'iteration sets to zero. If they matter, set activation=dict(signed=True) for it in a rule and '
                    'train again from the float weights',
                )
        for name, quantizer in quantizers.items():
            if quantizer.mode != FLOAT and not quantizer.is_ready():
                yield from self._once(
                    name,
                    NO_RANGE,
                    'has no range: no forward pass has called this layer with anything but zeros. If the model uses '
                    'its weight in another way, that is not quantized: skip the layer in a rule, so that the plan '
                    'says so',
                )

    def _once(self, name: str, kind: str, text: str) -> Iterator[str]:
        if (name, kind) not in self.named:
            self.named.add((name, kind))
            yield f"mmgdrq: the input of '{name}' {text}"


def _quantizers(model: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    suffix = '.activation_quantizer'
    for name, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            yield name[: -len(suffix)] if name.endswith(suffix) else name, module
