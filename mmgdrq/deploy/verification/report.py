"""What ``tools/deploy.py`` tells at its end."""

from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from .folded import TOLERANCE


@dataclass(frozen=True)
class GraphReport:
    """One graph in one engine.

    Attributes:
        engine, part: which.
        blocks: quantized layers in the graph; a head that is shared over levels counts once a level.
        integer, floating: convolutions and matrix products that the engine computes in integers, and in float;
            None: the engine does not run here.
        codes, different: input codes of the blocks, and how many of them differ from torch's on equal inputs.
        worst: block with the largest share of them.
        distance: how far torch's value lay from being rounded to the engine's code, in steps, at most.
        processor_dependent: blocks whose sums may be others on processors without VNNI, where pairs of products pass
            int16; those of all other blocks are the same on every processor.
        milliseconds: of one run on the sample, median.
        speedup: over the same network in float in the same engine, runs interleaved; None: not timed.
    """

    engine: str
    part: str
    blocks: int
    integer: Optional[int]
    floating: Optional[int]
    codes: int
    different: int
    worst: Optional[str]
    distance: float = 0.0
    processor_dependent: list[str] = field(default_factory=list)
    milliseconds: Optional[float] = None
    speedup: Optional[float] = None

    def __str__(self) -> str:
        timed = '' if self.speedup is None else f', {self.milliseconds:.1f} ms, {self.speedup:.2f}x as fast as float'
        different = f'{self.different:,} of {self.codes:,} codes differ'
        if self.different:
            different += f' (values at most {self.distance:.0e} steps from a tie)'
        kernels = 'not run' if self.integer is None else f'{self.integer} integer and {self.floating} float kernels'
        where = 'equal on processors with and without VNNI'
        if self.processor_dependent:
            where = f'may differ on processors without VNNI: {", ".join(self.processor_dependent)}'
        return (
            f'{self.engine} {self.part}: {kernels} for {self.blocks} calls of quantized layers, {different}{timed}; '
            f'integer sums {where}'
        )


@dataclass(frozen=True)
class Report:
    """What was folded, how well it agrees, and what it costs.

    Attributes:
        out: the directory.
        layers: number of folded layers.
        in_norm: how many of them have their scale in a BN; the others keep one scale per filter.
        not_reached: layers that the verification's inputs did not reach.
        worst_layer, worst_error: block with the largest difference to the quantized model, relative to the
            block's largest output.
        quantized_mb: the quantized model as float32 tensors, in MB.
        folded_mb: the directory without graphs, in MB.
        graphs_mb: engine -> its ONNX graphs, in MB.
        graphs: every graph in its engine.
        metrics: stage (``'float'``, ``'quantized'``, ``'folded'``, an engine) -> metrics of the config's test set.
    """

    out: str
    layers: int
    in_norm: int
    not_reached: list[str]
    worst_layer: str
    worst_error: float
    quantized_mb: float
    folded_mb: float
    graphs_mb: dict[str, float] = field(default_factory=dict)
    graphs: list[GraphReport] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report for json."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f'folded {self.layers} layers: {self.in_norm} scales in BN, {self.layers - self.in_norm} in the layer',
            f'largest difference of a block on real inputs: {self.worst_error:.1e} ({self.worst_layer}), '
            f'accepted {TOLERANCE:.0e}',
        ]
        if self.not_reached:
            lines.append(f'not reached by these inputs, so not verified: {", ".join(self.not_reached)}')
        lines.append(f'size: {self.quantized_mb:.2f} MB -> {self.folded_mb:.2f} MB')
        lines += [f'ONNX graphs for {engine}: {size:.2f} MB' for engine, size in self.graphs_mb.items()]
        lines += [str(graph) for graph in self.graphs]
        lines += self._metric_lines()
        return '\n'.join([*lines, f'written: {self.out}'])

    def _metric_lines(self) -> list[str]:
        names = sorted({name for metrics in self.metrics.values() for name in metrics})
        if not names:
            return []
        width = max(len(name) for name in names)
        head = ' ' * width + ''.join(f'{stage:>13}' for stage in self.metrics)
        rows = [
            f'{name:{width}}' + ''.join(f'{metrics.get(name, float("nan")):13.4f}' for metrics in self.metrics.values())
            for name in names
        ]
        return ['', head, *rows, '']
