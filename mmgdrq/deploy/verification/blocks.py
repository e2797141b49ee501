"""Compare the blocks of an export with a quantized model, so that no step of the export is its own witness.

Every block gets the input that its layer gets in real forward passes of the other model. What the engine rounds more
than that model is allowed for; values on a tie are too few to count in the mean.
"""

from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor, nn

from ...errors import ExportError
from ..engines.requantized_output import without_simulation
from ..export.block_module import BlockModule
from ..export.writer import BlockModel

TOLERANCE = 1e-4
"""Largest accepted mean difference beyond what the engine rounds, relative to the largest output of the block."""
EXTREMES = 1e-2
"""What a grid from sample images may cut off more: the extremes of its block where those before it are rounded."""


@torch.no_grad()
def compare_with(reference: nn.Module, blocks: BlockModel, run: Callable[[nn.Module], object]) -> dict[str, float]:
    """Feed every block the input of its layer in another model, and compare the outputs.

    Args:
        reference: the quantized model, or the folded one, in eval mode and on the CPU.
        blocks: what is exported, with its outputs as they are requantized.
        run: runs the model that it is given on real inputs.

    Returns:
        Layer name -> mean difference beyond what the engine rounds, relative to the largest output of the block.
        Layers that ``run`` does not reach, or whose inputs the engine quantizes more coarsely, are missing.
    """
    errors: dict[str, float] = {}
    modules, handles = dict(reference.named_modules()), []

    def compare(name: str, block: BlockModule, tail: str) -> None:
        inputs: list[Tensor] = []

        def before(module, args, kwargs):
            inputs[:] = [args[0] if args else next(iter(kwargs.values()))]

        def after(module, args, output):
            if inputs and output.numel():
                errors[name] = max(errors.get(name, 0.0), _error(block, inputs.pop(), output))

        handles.append(modules[name].register_forward_pre_hook(before, with_kwargs=True))
        handles.append(modules[tail].register_forward_hook(after))

    for name, entry in blocks.model.gdrq_folded.items():
        block = _block_at(blocks.model, name)
        if block is not None and block.block.limits == entry.input:
            compare(name, block, entry.norm or name)
    try:
        with without_simulation(reference):
            run(reference)
    finally:
        for handle in handles:
            handle.remove()
    return errors


def check_compared(errors: dict[str, float], engine: str, tolerance: float = TOLERANCE) -> None:
    """Raise where a block computes something else.

    Raises:
        ExportError: names the worst layer.
    """
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float('inf'), default=None)
    if worst is not None and not errors[worst] <= tolerance:
        raise ExportError(
            f'export: {worst} differs in the graph for {engine} from the quantized layer by {errors[worst]:.1e} of its '
            f'largest output beyond what the engine rounds, accepted are {tolerance:.0e}. Leave it in float with '
            'rules=[dict(pattern=..., skip=True)]'
        )


def _block_at(model: nn.Module, name: str) -> Optional[BlockModule]:
    module = model.get_submodule(name)
    return module if isinstance(module, BlockModule) else None


def _error(block: BlockModule, x: Tensor, expected: Tensor) -> float:
    found = block.engine.compute(block.block, x, block.output)
    expected = block.engine.clipped(expected, block.output, block.trained)
    excess = ((found - expected).abs() - block.engine.rounding(block.block, block.output)).clamp(min=0)
    error = float(excess.mean() / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    from_samples = block.output.own and block.trained is None
    return max(error - EXTREMES, 0.0) if from_samples and error == error else error
