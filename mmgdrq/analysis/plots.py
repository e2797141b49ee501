"""Pictures of the distributions; needs matplotlib, which OpenMMLab brings along."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from torch import Tensor
from torch.nn import Module

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from ..files import write_file
from ..layers import WeightQuantizer, is_quantized
from ..quant import group_mean_abs, per_filter

LAYERS = 4
"""Layers in a picture."""


def plot_weights(models: Mapping[str, Module], path: Path, layers: Sequence[str] = ()) -> None:
    """Histograms of weights in units of their group's mean magnitude, one row a model.

    A uniform distribution is flat from -2 to 2 there.

    Args:
        models: title -> a converted model; all of the same architecture.
        path: png or svg file.
        layers: names of the layers; by default some that are spread over the network: of those below 8 bits, or
            where there are none of all whose weight is quantized. Without any there is no picture.
    """
    layers = layers or spread(_candidates(next(iter(models.values()))), LAYERS)
    if not layers:
        return
    figure, axes = plt.subplots(len(models), len(layers), squeeze=False, sharex=True)
    figure.set_size_inches(3 * len(layers), 2.2 * len(models))
    for row, (title, model) in zip(axes, models.items()):
        for axis, name in zip(row, layers):
            axis.hist(relative_weight(model.get_submodule(name)), bins=81, range=(-4, 4), density=True)
            axis.set_title(f'{title}\n{name}', fontsize=8)
            axis.set_yticks([])
    for axis in axes[-1]:
        axis.set_xlabel('w / mean|w|', fontsize=8)
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], dpi=90)
    plt.close(figure)
    write_file(path, picture.getvalue())


def relative_weight(layer: Module) -> Tensor:
    """All elements of what a layer quantizes, its ``filters()``, in units of the mean magnitude of their group."""
    weight, spec = layer.filters().detach(), layer.weight_quantizer.spec
    scale = per_filter(group_mean_abs(weight, spec.group_size), weight.shape[0], spec.group_size)
    return (weight.flatten(1) / scale.clamp(min=1e-12)[:, None]).flatten()


def spread(names: Sequence[str], count: int) -> list[str]:
    """At most ``count`` names, evenly spread.

    >>> spread(['a', 'b', 'c', 'd', 'e'], 3)
    ['a', 'c', 'e']
    """
    if len(names) <= count:
        return list(names)
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def _candidates(model: Module) -> list[str]:
    bits = {
        name: module.weight_quantizer.spec.bits
        for name, module in model.named_modules()
        if is_quantized(module) and isinstance(module.weight_quantizer, WeightQuantizer)
    }
    return [name for name in bits if bits[name] < 8] or list(bits)
