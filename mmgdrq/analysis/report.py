"""Statistics of every quantized layer: how much its weight and its input lose, and how uniform they are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..layers import ActivationQuantizer, WeightQuantizer, is_quantized
from ..quant import collect, quantized_loss, search_range, threshold_of, weight_range
from .distances import gap_to_uniform

SAMPLE = 100_000
"""Elements of each input that are looked at."""


@dataclass(frozen=True)
class LayerReport:
    """One quantized layer.

    Attributes:
        name: qualified name.
        weight_bits, input_bits: bit-widths; 32 where that tensor stays in float.
        weight_loss: quantized-loss (p = 1) of what the layer quantizes, its ``filters()``, at its range (a learned or
            searched one, or what its rule gives); mean over the groups.
        weight_best: the same at the best range.
        weight_gap: distance of the weight to uniform (:func:`gap_to_uniform`), mean over the groups.
        input_loss, input_best, input_gap: the same for the values of the input that are not zero, on the grid that the
            layer has, or would take where it has no range yet; None where no value but zero was seen.
    """

    name: str
    weight_bits: int
    input_bits: int
    weight_loss: Optional[float] = None
    weight_best: Optional[float] = None
    weight_gap: Optional[float] = None
    input_loss: Optional[float] = None
    input_best: Optional[float] = None
    input_gap: Optional[float] = None


@torch.no_grad()
def analyze(model: nn.Module, run: Optional[Callable[[nn.Module], None]] = None) -> list[LayerReport]:
    """Look at every quantized layer of a model.

    Args:
        model: a converted model, with float or quantized weights.
        run: calls the model on sample inputs; None looks at the weights only.

    Returns:
        One report a layer, in the order of the model.
    """
    layers = {name: m for name, m in model.named_modules() if is_quantized(m)}
    samples = _inputs(layers, model, run) if run is not None else {}
    return [_report(name, layer, samples.get(name)) for name, layer in layers.items()]


LEGEND = (
    'loss: mean |x - q(x)| / mean |x| at the range in use; best: at the best range; gap: distance of the magnitudes to '
    'a uniform distribution. Lower is better; what to do about a bad layer: docs/usage.md'
)


def format_table(reports: list[LayerReport]) -> str:
    """The reports as a table, and the means over the layers."""
    head = ('layer', 'bits', 'weight loss', 'best', 'gap', 'input loss', 'best', 'gap')
    rows = [(r.name, f'{r.weight_bits}/{r.input_bits}', *map(_number, _values(r))) for r in reports]
    columns = list(zip(*[_values(r) for r in reports]))
    rows.append(('mean', '', *(_number(_mean([v for v in column if v is not None])) for column in columns)))
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ['  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in [head, *rows]]
    return '\n'.join([lines[0], '  '.join('-' * w for w in widths), *lines[1:], LEGEND])


def _report(name: str, layer: nn.Module, sample: Optional[Tensor]) -> LayerReport:
    weights, inputs = layer.weight_quantizer, layer.activation_quantizer
    bits = [q.spec.bits if hasattr(q, 'spec') else 32 for q in (weights, inputs)]
    values: dict[str, Any] = {}
    if isinstance(weights, WeightQuantizer):
        values.update(zip(('weight_loss', 'weight_best', 'weight_gap'), _weight(layer.filters().detach(), weights)))
    if isinstance(inputs, ActivationQuantizer) and sample is not None and bool((sample != 0).any()):
        values.update(zip(('input_loss', 'input_best', 'input_gap'), _input(sample, inputs)))
    return LayerReport(name, *bits, **values)


def _weight(filters: Tensor, quantizer: WeightQuantizer) -> tuple[float, float, float]:
    spec = quantizer.spec
    kept = quantizer.stateful and quantizer.is_ready()  # range_of() would set a range that is missing
    ranges = quantizer.alpha.abs() if kept else weight_range(filters, spec)
    found = []
    for rows, alpha in _rows_of_groups(filters, ranges, spec.group_size):
        best = search_range(rows, spec.levels, spec.code_limits, 1, spec.offset)
        losses = [quantized_loss(rows, a, spec.levels, spec.code_limits, 1, spec.offset) for a in (alpha, best)]
        found.append(torch.stack([*losses, gap_to_uniform(rows)]))
    return tuple(torch.cat(found, dim=1).mean(1).tolist())


def _rows_of_groups(filters: Tensor, ranges: Tensor, group_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Groups of equal size as rows, with their ranges; a smaller last group comes alone."""
    size = len(filters) if group_size == -1 else group_size
    whole = len(filters) // size
    if whole:
        yield filters[: whole * size].reshape(whole, -1), ranges[:whole]
    if whole * size < len(filters):
        yield filters[whole * size :].reshape(1, -1), ranges[whole:]


def _input(sample: Tensor, quantizer: ActivationQuantizer) -> tuple[float, float, float]:
    spec = quantizer.spec
    if quantizer.is_ready():
        signed, threshold = bool(quantizer.signed), quantizer.threshold.detach().reshape(()).abs()
    else:
        signed = bool(sample.amin() < 0) if spec.signed == 'auto' else spec.signed
        threshold = threshold_of(collect(sample, spec, signed), spec, signed)
    levels, limits = spec.levels(signed), spec.code_limits(signed)
    best = search_range(sample.unsqueeze(0), levels, limits, p=1)[0]
    loss, least = (float(quantized_loss(sample, alpha, levels, limits)) for alpha in (threshold, best))
    return loss, least, float(gap_to_uniform(sample[sample != 0]))


def _sample(x: Tensor) -> Tensor:
    """Elements at random positions, the same ones each time, as those at equal distances may all be padding."""
    if len(x) <= SAMPLE:
        return x
    return x[torch.randint(len(x), (SAMPLE,), generator=torch.Generator().manual_seed(0)).to(x.device)]


def _inputs(layers: dict[str, nn.Module], model: nn.Module, run: Callable) -> dict[str, Tensor]:
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str):
        def hook(module, args, kwargs):
            x = (args[0] if args else next(iter(kwargs.values()))).detach().flatten()
            kept[name].append(_sample(x).float())

        return hook

    handles = [layer.register_forward_pre_hook(keep(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in kept.items() if parts}


def _values(report: LayerReport) -> tuple[Optional[float], ...]:
    return (
        report.weight_loss,
        report.weight_best,
        report.weight_gap,
        report.input_loss,
        report.input_best,
        report.input_gap,
    )


def _mean(values: list[float]) -> Optional[float]:
    return sum(values) / len(values) if values else None


def _number(value: Optional[float]) -> str:
    return '-' if value is None else f'{value:.3f}'
