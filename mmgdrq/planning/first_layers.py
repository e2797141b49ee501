"""Find the layers that read the image, by their channels and names."""

import re
from typing import Optional

from torch import nn

Layers = dict[str, nn.Module]
"""Qualified name -> layer, in module order."""


IMAGE_CHANNELS = 4
"""An input with more channels is no image."""

USUAL_CHANNELS = (3, 1, 4)
"""Channels of images, in the order in which they are looked for where the first layer reads none."""

BY_CHANNELS = 'reads the image (by channels)'
FIRST = 'first layer'


def image_layers(layers: Layers) -> dict[str, str]:
    """Name -> reason, of the convolutions that read an image, and of the first layer of the model.

    The first layer that is declared may be another than those; it is kept at 8 bits all the same, as a model may
    declare its classifier first.
    """
    if not layers:
        return {}
    channels = _image_channels(layers)
    if channels is None:
        return {next(iter(layers)): FIRST}
    found = [name for name, layer in layers.items() if getattr(layer, 'in_channels', None) == channels]
    found += [name for name in layers if any(_second_stream(name, other, layers) for other in found)]
    return {next(iter(layers)): FIRST, **dict.fromkeys(found, BY_CHANNELS)}


def _image_channels(layers: Layers) -> Optional[int]:
    first, *_ = layers.values()
    if _may_read_an_image(first):
        return first.in_channels
    present = {layer.in_channels for layer in layers.values() if _may_read_an_image(layer)}
    return next((channels for channels in USUAL_CHANNELS if channels in present), None)


def _may_read_an_image(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.in_channels <= IMAGE_CHANNELS


def _second_stream(name: str, other: str, layers: Layers) -> bool:
    """Whether a layer reads another image in the place where ``other`` reads its own, such as depth beside RGB.

    It is the same layer but for its input channels, and called the same but for one part of the name.
    """
    one, two = layers[name], layers[other]
    if not _may_read_an_image(one) or not isinstance(two, nn.Conv2d) or one.in_channels == two.in_channels:
        return False
    if any(getattr(one, key) != getattr(two, key) for key in ('out_channels', 'kernel_size', 'stride', 'padding')):
        return False
    parts, others = name.split('.'), other.split('.')
    differing = [pair for pair in zip(parts, others) if pair[0] != pair[1]]
    if len(parts) != len(others) or len(differing) != 1:
        return False
    return len({re.sub(r'\d+', '', part) for part in differing[0]}) == 2  # conv1 and conv2 follow each other
