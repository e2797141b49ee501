"""Optimize a written graph: equal weights are stored once, and poolings of one cell become slices."""

from pathlib import Path

from .clipped_codes import clip_codes

END = 2**31 - 1
LEAST_BYTES = 256
"""Smaller constants are not worth a look."""


def optimize(path: Path, clips_codes: bool = False) -> None:
    """Rewrite an ONNX file with the same results.

    - A head that is shared over levels is written once a level: equal constants become one.
    - ``MaxPool`` whose kernel is one cell becomes ``Slice``. FPN makes its coarsest level that way, and OpenVINO
      2026.4 gets such a pooling wrong (zeros) where the convolution before it has other quantized readers.

    Args:
        path: ONNX file.
        clips_codes: clip codes behind quantizers instead of values before them, see :mod:`.clipped_codes`.
    """
    import onnx

    model = onnx.load(str(path))
    for node in model.graph.node:
        if node.op_type == 'MaxPool' and _is_one_cell(onnx, node):
            _become_slice(onnx, model.graph, node)
    if not any(_has_graphs(node) for node in model.graph.node):
        if clips_codes:
            clip_codes(model)
        _share_constants(model.graph)
    onnx.save(model, str(path))


def _has_graphs(node) -> bool:
    """Whether a node holds graphs of its own, which may read constants from outside."""
    return any(attribute.HasField('g') or attribute.graphs for attribute in node.attribute)


def _share_constants(graph) -> None:
    first: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == 'Constant' and node.ByteSize() >= LEAST_BYTES:
            content = node.attribute[0].t.SerializeToString()
            if content in first:
                renamed[node.output[0]] = first[content]
                continue
            first[content] = node.output[0]
        for number, name in enumerate(node.input):
            node.input[number] = renamed.get(name, name)
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


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
