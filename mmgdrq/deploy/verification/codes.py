"""Does an engine compute what the blocks compute in torch? Block by block, on equal inputs.

Whole networks are not compared value by value: where a value lies in the middle between two codes, the last bit of
a sum decides, and the difference spreads through everything behind it. So the graph is cut at the input of every
block: the engine gets the codes that torch computed there, and what it makes of them are the next blocks' codes.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from ...errors import ExportError
from ..engines.base import find_engine
from ..export.block_module import BlockModule
from ..export.exported import Exported
from ..export.graph_reader import INTEGER_LAYERS, block_layers


@dataclass(frozen=True)
class CodeErrors:
    """How an engine's codes differ from torch's.

    Attributes:
        codes: number of compared codes.
        different: how many of them differ.
        worst: block whose input has the largest share of different codes; None: nothing differs.
        distance: how far torch's value lay from being rounded to the engine's code, in steps; the largest of all
            different codes. About 1e-6 is the last bit of a float sum.
        results: largest difference of the part's results, relative to the largest value.
    """

    codes: int
    different: int
    worst: Optional[str]
    distance: float
    results: float

    @property
    def share(self) -> float:
        """Different codes among all."""
        return self.different / max(self.codes, 1)


MAX_SHARE, MAX_RESULT = 5e-4, 1e-3
"""Accepted are codes on a tie and the rounding of sums; anything above is another computation."""


def check_codes(errors: CodeErrors, engine: str, path: Path) -> None:
    """Raise where an engine computes something else than torch.

    Raises:
        ExportError: names the worst block.
    """
    ties = errors.distance <= find_engine(engine).max_distance
    if errors.share <= MAX_SHARE and errors.results <= MAX_RESULT and ties:
        return
    raise ExportError(
        f'export: {engine} computes {path.name} differently: {errors.different:,} of {errors.codes:,} codes differ '
        f'(most before {errors.worst}; {errors.distance:.0e} steps from a tie), results by {errors.results:.1e}; '
        f'accepted are {MAX_SHARE:.2%} and {MAX_RESULT:.0e}. Another version of the engine may help, or a float layer '
        'there, rules=[dict(pattern=..., skip=True)]'
    )


def compare_codes(exported: Exported, engine: str, optimize: bool = True) -> CodeErrors:
    """Run the cut graph of a part on its example.

    Args:
        exported: a part and its graph.
        engine: name of the engine that runs the graph.
        optimize: as the engine runs it; False: node by node, as the graph is written.

    Raises:
        ExportError: the engine is not installed or does not accept the cut graph.
    """
    runner = find_engine(engine)
    expected, scaled, codes = _simulate(exported)
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder, 'cut.onnx')
        feeds, quantizers = _cut(exported, _stored(exported, codes), cut)
        run = runner.open(cut, optimize=optimize)
        kernels = runner.quantizer_kernels(cut)
        if kernels:
            expected, scaled, codes = _simulate(exported, [kernels.get(name) for name in quantizers])
            feeds = dict(zip(feeds, _stored(exported, codes)))
        found = run(exported.example.numpy(), **feeds)
    count = len(expected)
    _check_shapes(exported.path, [*expected, *codes], found)
    pairs = list(zip(feeds.values(), found[count:]))
    different = [int((a != b).sum()) for a, b in pairs]
    distances = [_distance(v, a, a.astype(np.int16) - c.numpy(), b) for v, c, (a, b) in zip(scaled, codes, pairs)]
    sizes = [a.size for a in feeds.values()]
    names = [module.block.name for module in exported.blocks if module.block.limits is not None]
    shares = [d / max(size, 1) for d, size in zip(different, sizes)]
    worst = names[shares.index(max(shares))] if any(shares) else None
    errors = [_relative(e, f) for e, f in zip(expected, found[:count])]
    return CodeErrors(sum(sizes), sum(different), worst, max(distances, default=0.0), max(errors, default=0.0))


def _check_shapes(path: Path, expected: Sequence, found: Sequence) -> None:
    shapes = [[tuple(array.shape) for array in arrays] for arrays in (expected, found)]
    for ours, theirs in zip(*shapes):
        if ours != theirs:
            raise ExportError(f'export: {path.name} has values of shape {theirs} where torch has {ours}')


def _distance(value: np.ndarray, ours: np.ndarray, zero: np.ndarray, theirs: np.ndarray) -> float:
    """Largest distance of ``value``, in steps, from what rounds to their code; where that is ours: 0."""
    where = ours != theirs
    if not where.any():
        return 0.0
    code = theirs[where].astype(np.float64) - zero[where]
    return float((np.abs(value[where] - code) - 0.5).max())


def _relative(expected: Tensor, found: np.ndarray) -> float:
    difference = (torch.from_numpy(found) - expected).abs().max()
    return float(difference / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


@torch.no_grad()
def _simulate(
    exported: Exported, kernels: Sequence[Optional[str]] = ()
) -> tuple[list[Tensor], list[np.ndarray], list[Tensor]]:
    """Results of the part in torch; inputs of its blocks in steps, and their codes, in the order of their calls.

    Args:
        kernels: of every call, what computes its quantizer; empty: the engine's usual one.
    """
    scaled: list[np.ndarray] = []
    codes: list[Tensor] = []

    def keep(module: BlockModule, args) -> None:
        limits = module.block.limits
        if limits is not None:
            module.kernel = kernels[len(codes)] if kernels else None
            scaled.append((args[0] / module.block.step).numpy())
            codes.append(module.engine.encode(module.block, args[0], module.kernel))

    blocks = list({id(module): module for module in exported.blocks}.values())
    handles = [module.register_forward_pre_hook(keep) for module in blocks]
    try:
        return exported.part.module(exported.example), scaled, codes
    finally:
        for module, handle in zip(blocks, handles):
            handle.remove()
            module.kernel = None


def _stored(exported: Exported, codes: Sequence[Tensor]) -> list[np.ndarray]:
    """Input codes of the blocks' calls as they stand in the graph."""
    blocks = [module.block for module in exported.blocks if module.block.limits is not None]
    return [exported.engine.stored(block, c) for block, c in zip(blocks, codes)]


def _cut(exported: Exported, codes: list[np.ndarray], out: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Write the graph with the codes as inputs and, behind its own results, as results.

    Returns:
        The inputs, and the name of the quantizer's result in the place of each.
    """
    import onnx

    model = onnx.load(str(exported.path))
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    feeds = {}
    layers = block_layers(graph.node, exported.blocks)
    cuts = [_codes_of(node, makers) for node, module in layers if module.block.limits is not None]
    for number, ((reader, name), array) in enumerate(zip(cuts, codes)):
        feed, kind = f'codes_{number}', onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        reader.input[0] = feed
        feeds[feed] = array
        free = [f'{feed}_{axis}' for axis in range(array.ndim)]
        graph.input.append(onnx.helper.make_tensor_value_info(feed, kind, free))
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, free))
    onnx.save(model, str(out))
    return feeds, [name for _, name in cuts]


def _codes_of(layer, makers):
    """The node that reads a layer's input codes, and their name."""
    reader = layer if layer.op_type in INTEGER_LAYERS else makers[layer.input[0]]
    return reader, reader.input[0]
