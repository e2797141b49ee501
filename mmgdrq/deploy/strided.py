"""Poolings of one cell as strided slices, which they are.

FPN makes its coarsest level that way. OpenVINO 2026.4 gets such a pooling wrong (zeros) where the convolution before
it has other quantized readers.
"""

from pathlib import Path

END = 2**31 - 1


def slice_one_cell_pools(path: Path) -> None:
    """Rewrite an ONNX file with ``Slice`` in the place of every ``MaxPool`` whose kernel is one cell."""
    import onnx

    model = onnx.load(str(path))
    changed = False
    for node in model.graph.node:
        if node.op_type == 'MaxPool' and _is_one_cell(onnx, node):
            _become_slice(onnx, model.graph, node)
            changed = True
    if changed:
        onnx.save(model, str(path))


def _is_one_cell(onnx, node) -> bool:
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return set(values['kernel_shape']) == {1} and not any(values.get('pads', ())) and not values.get('ceil_mode', 0)


def _become_slice(onnx, graph, node) -> None:
    strides = next(list(a.ints) for a in node.attribute if a.name == 'strides')
    axes = list(range(2, 2 + len(strides)))
    parts = dict(starts=[0] * len(axes), ends=[END] * len(axes), axes=axes, steps=strides)
    source, result = node.input[0], node.output[0]
    graph.initializer.extend(
        onnx.helper.make_tensor(f'{result}_{name}', onnx.TensorProto.INT64, [len(axes)], value)
        for name, value in parts.items()
    )
    replacement = onnx.helper.make_node('Slice', [source, *(f'{result}_{n}' for n in parts)], [result], name=node.name)
    node.CopyFrom(replacement)
