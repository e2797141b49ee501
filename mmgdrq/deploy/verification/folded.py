"""Does the folded model compute what the quantized one does? Block by block, on equal inputs.

Whole networks are not compared value by value: a tie in one rounding spreads through everything behind it.
"""

from typing import Callable

import torch
from torch import Tensor, nn

from ...errors import FoldError
from ..engines.requantized_output import without_simulation
from ..folding.folded_layers import FoldedLayer

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest output of the block."""


def compare_blocks(model: nn.Module, folded: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, float]:
    """Feed every folded block the input that its quantized counterpart gets in real forward passes.

    What :func:`~mmgdrq.deploy.simulation.simulate` puts behind blocks is left out: it would turn the last bit of a sum
    on a tie into a step.

    Args:
        model: the quantized model, in eval mode.
        folded: result of :func:`mmgdrq.fold` for it.
        run: runs the model that it is given on real inputs.

    Returns:
        Layer name -> largest difference of the block's output, relative to its largest value. A block is a
        layer, with the BN that carries its scale. Layers that ``run`` does not reach are missing.
    """
    comparison = _Comparison(model, folded)
    try:
        with torch.no_grad(), without_simulation(model, folded):
            run(model)
    finally:
        comparison.remove()
    return comparison.errors


def check_blocks(errors: dict[str, float], entries: dict[str, FoldedLayer], tolerance: float = TOLERANCE) -> None:
    """Raise where a block differs, or where no block was compared.

    Raises:
        FoldError: names the worst layer.
    """
    if not errors:
        raise FoldError('verify: the real inputs reached no folded layer, so nothing was compared')
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float('inf'))
    if not errors[worst] <= tolerance:
        raise FoldError(
            f'verify: the folded {worst} (BN: {entries[worst].norm}) differs from the quantized one by '
            f'{errors[worst]:.2e} of its largest output, accepted are {tolerance:.0e}. Nothing was written'
        )


class _Comparison:
    def __init__(self, model: nn.Module, folded: nn.Module) -> None:
        self.errors: dict[str, float] = {}
        self.waiting: dict[str, Tensor] = {}
        self.handles: list = []
        modules, copies = dict(model.named_modules()), dict(folded.named_modules())
        for name, entry in folded.gdrq_folded.items():
            norm = entry.norm
            self._on(modules[name], self._after_layer(name, norm, copies[name]))
            if norm:
                self._on(modules[norm], self._after_norm(name, norm, copies[norm]))

    def _on(self, module: nn.Module, hook: Callable) -> None:
        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def _after_layer(self, name, norm, copy):
        def hook(module, args, kwargs, output):
            result = copy(*args, **kwargs)
            if norm:
                self.waiting[norm] = result
            else:
                self._note(name, output, result)

        return hook

    def _after_norm(self, name, norm, copy):
        def hook(module, args, kwargs, output):
            self._note(name, output, copy(self.waiting.pop(norm)))

        return hook

    def _note(self, name: str, expected: Tensor, result: Tensor) -> None:
        if expected.numel():
            scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            error = float((result - expected).abs().max() / scale)
            self.errors[name] = max(error, self.errors.get(name, 0.0))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
