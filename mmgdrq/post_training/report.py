"""What a calibration has found, layer by layer."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Optional

from ..planning.plan import Plan

HEAD = ('layer', 'weight', 'activation', 'lowest', 'highest', 'weight error', 'output error')


COARSE = 0.2
"""Output error of a layer above which the report names it."""

AFFINE_HINT = (
    "Signed inputs that are skewed (SiLU, GELU), and channels of different size, want activation=dict(grid='affine')"
)


@dataclass(frozen=True)
class CalibratedLayer:
    """One quantized layer.

    Attributes:
        name: qualified name.
        weight_bits: bits of the weight, 32 where it is in float.
        activation_bits: bits of the input, 32 where it is in float.
        range: lowest and highest value of the input that is not clipped, over its channels; None where the input is in
            float or the layer was not called.
        weight_error: ``||W - Q(W)|| / ||W||``; None where the weight is in float.
        output_error: ``||y - Q(y)|| / ||y||`` of the layer by itself, on its inputs in float, over the first batch;
            None where it was not called.
    """

    name: str
    weight_bits: int
    activation_bits: int
    range: Optional[tuple[float, float]]
    weight_error: Optional[float]
    output_error: Optional[float]


@dataclass(frozen=True)
class CalibrationReport:
    """The result of :func:`mmgdrq.calibrate`; ``str(report)`` is a table.

    Attributes:
        plan: what was quantized to what, and why the rest was not.
        layers: the quantized layers.
        batches: number of batches.
    """

    plan: Plan
    layers: tuple[CalibratedLayer, ...]
    batches: int

    @property
    def uncalled(self) -> list[str]:
        """Names of layers whose input should be quantized, and has no range as they were not called."""
        return [layer.name for layer in self.layers if layer.activation_bits < 32 and layer.range is None]

    @property
    def coarse(self) -> list[str]:
        """Names of the layers whose output error is above :data:`COARSE`, the worst first."""
        layers = [layer for layer in self.layers if (layer.output_error or 0) > COARSE]
        return [layer.name for layer in sorted(layers, key=lambda layer: -(layer.output_error or 0))]

    @property
    def _affine(self) -> bool:
        return any(row.activation is not None and row.activation.grid == 'affine' for row in self.plan)

    def __str__(self) -> str:
        lines = [HEAD, *(_cells(layer) for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        lines.insert(1, tuple('-' * width for width in widths))
        text = [*_justified(lines, widths), self.plan.summary()]
        if self.uncalled:
            text.append(f'not called, so without an input range: {", ".join(self.uncalled)}')
        if self.coarse:
            text.append(
                f'{len(self.coarse)} layers lose more than {COARSE:.0%} of their output, most of all {self.coarse[0]}. '
                + ('More bits for them help, by a rule' if self._affine else AFFINE_HINT)
            )
        return '\n'.join(text)

    def to_json(self) -> str:
        """The report as JSON, the plan as :meth:`Plan.to_json` writes it."""
        layers = [asdict(layer) for layer in self.layers]
        return json.dumps(
            {'batches': self.batches, 'layers': layers, 'plan': json.loads(self.plan.to_json())}, indent=1
        )


def _cells(layer: CalibratedLayer) -> tuple[str, ...]:
    low, high = ('-', '-') if layer.range is None else (f'{end:.4g}' for end in layer.range)
    errors = ['-' if error is None else f'{error:.2%}' for error in (layer.weight_error, layer.output_error)]
    return layer.name, str(layer.weight_bits), str(layer.activation_bits), low, high, *errors


def _justified(lines: Iterable[tuple[str, ...]], widths: list[int]) -> Iterable[str]:
    for name, *cells in lines:
        yield '  '.join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:]))])
