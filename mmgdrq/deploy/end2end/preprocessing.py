"""Normalization of a resized image as ONNX operators."""

from collections.abc import Mapping
from typing import Any

from .operators import Operators


def add_preprocessing(add: Operators, image: str, spec: Mapping[str, Any], output: str) -> None:
    """Turn a resized image into the input of the network, as :func:`mmgdrq_runtime.preprocessing.prepare` does.

    Args:
        add: the graph.
        image: name of a tensor of shape ``(1, H, W, 3)``, uint8, BGR, after the steps of the pipeline.
        spec: ``preprocessing`` of a pipeline file.
        output: name of the result, shape ``(1, 3, H', W')``.
    """
    x = add('Transpose', add.cast(image, 'FLOAT'), perm=[0, 3, 1, 2])
    if spec['reverse_channels']:
        x = add('Gather', x, [2, 1, 0], axis=1)
    if spec['mean'] is not None:
        mean, std = ([[[[float(value)]] for value in spec[key]]] for key in ('mean', 'std'))
        x = add('Div', add('Sub', x, mean), std)
    size = add('Slice', add('Shape', x), [2], [4])
    if spec['pad_size'] is not None:
        missing = add('Max', add('Sub', spec['pad_size'], size), [0, 0])
    else:
        divisor = [spec['pad_divisor']] * 2
        missing = add('Mod', add('Sub', divisor, add('Mod', size, divisor)), divisor)
    add('Pad', x, add.join([add.constant([0] * 6), missing], 0), float(spec['pad_value']), output=output)
