"""Find the layers that read the image."""

from torch import nn

Layers = dict[str, nn.Module]
"""Qualified name -> layer, in module order."""


IMAGE_CHANNELS = 4
"""An input with more channels is no image."""


def image_layers(layers: Layers) -> list[str]:
    """The convolutions that read the image; the first layer of a model that reads none."""
    if not layers:
        return []
    first = next(iter(layers.values()))
    if not isinstance(first, nn.Conv2d) or first.in_channels > IMAGE_CHANNELS:
        return list(layers)[:1]
    channels = first.in_channels
    return [name for name, layer in layers.items() if getattr(layer, 'in_channels', None) == channels]
