"""A look, now and then, at what the fixed decisions about a range do to the data, and at layers that nothing calls."""

from collections.abc import Iterator
from typing import Optional

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from ...layers import FLOAT, QUANTIZE, ActivationQuantizer
from ...registry import HOOKS
from ..wrappers import unwrap

FIRST_LOOK = 10
"""Iterations before the first look."""

SHARE = 0.01
"""Share of negative elements from which an unsigned grid is reported."""


@HOOKS.register_module()
class RangeCheckHook(Hook):
    """Warn of inputs that the range of their layer does not fit; GDRQHook does it by itself.

    Whether an input is signed (``signed='auto'``) is decided by its first iteration; an input that becomes negative
    later is cut off at zero. A threshold does not follow inputs that are not finite. A layer that no forward pass has
    called computes nothing, or its parent reads its float weight. Every ``interval`` iterations, and early in a run,
    one iteration is looked at, and each such layer is named once.

    Args:
        interval: iterations between two looks; other iterations cost nothing.
    """

    def __init__(self, interval: int = 500) -> None:
        self.interval = interval
        self.first: Optional[int] = None
        self.named: set[tuple[str, str]] = set()
        self.handles: list = []
        self.seen: dict[str, Tensor] = {}

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Look at the inputs of this iteration, if it is time."""
        if self.first is None:
            self.first = runner.iter + FIRST_LOOK
        if runner.iter == self.first or (runner.iter + 1) % self.interval == 0:
            for name, quantizer in _quantizers(unwrap(runner.model)):
                self.handles.append(quantizer.register_forward_pre_hook(self._look(name)))

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        """Report."""
        if not self.handles:
            return
        for handle in self.handles:
            handle.remove()
        quantizers = dict(_quantizers(unwrap(runner.model)))
        counts = torch.stack([*self.seen.values()]).tolist() if self.seen else []
        for name, (negative, count, strange) in zip(self.seen, counts):
            if strange:
                self._warn(runner, name, 'not finite', 'holds NaN or Inf; its threshold stays where it is')
            elif not bool(quantizers[name].signed) and negative > SHARE * count:
                self._warn(
                    runner,
                    name,
                    'negative',
                    f'is negative in {negative / count:.0%} of its elements, which the unsigned grid of its first '
                    'iteration sets to zero. If they matter, set activation=dict(signed=True) for it in a rule and '
                    'train again from the float weights',
                )
        for name, quantizer in quantizers.items():
            if quantizer.mode != FLOAT and not quantizer.is_ready():
                self._warn(
                    runner,
                    name,
                    'no range',
                    'has no range: no forward pass has called this layer with anything but zeros. If the model uses '
                    'its weight in another way, that is not quantized: skip the layer in a rule, so that the plan '
                    'says so',
                )
        self.handles, self.seen = [], {}

    def _look(self, name: str):
        @torch.no_grad()
        def look(quantizer: ActivationQuantizer, args: tuple) -> None:
            x = args[0]
            if x.numel() and quantizer.mode == QUANTIZE and quantizer.is_ready():
                counts = torch.stack([(x < 0).sum(), torch.tensor(x.numel(), device=x.device), (x * 0 != 0).sum()])
                self.seen[name] = self.seen.get(name, 0) + counts

        return look

    def _warn(self, runner, name: str, kind: str, text: str) -> None:
        if (name, kind) not in self.named:
            self.named.add((name, kind))
            runner.logger.warning(f"mmgdrq: the input of '{name}' {text}")


def _quantizers(model: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    suffix = '.activation_quantizer'
    for name, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            yield name[: -len(suffix)] if name.endswith(suffix) else name, module
