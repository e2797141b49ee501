"""Put preprocessing and decoder around the graph of a dense part."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from mmgdrq_runtime.manifest import PathLike, graph_file, read_manifest
from mmgdrq_runtime.pipeline import read_pipeline

from ...errors import CheckpointError, ExportError
from ..engines import Engine, find_engine
from .classifier import add_classifier
from .dense import add_dense
from .operators import Operators
from .preprocessing import add_preprocessing
from .yolox import add_yolox

FLOAT, INT64, UINT8 = 1, 7, 2
"""Element types of ONNX."""
DETECTIONS = {'boxes': (FLOAT, ['detections', 4]), 'scores': (FLOAT, ['detections']), 'labels': (INT64, ['detections'])}
DECODERS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    'classifier': (add_classifier, {'class_scores': (FLOAT, ['classes'])}),
    'dense': (add_dense, DETECTIONS),
    'yolox': (add_yolox, DETECTIONS),
}
"""Type of a decoder -> what appends it, and its results: element type and shape."""


def write_end2end(path: PathLike, engine: str, out: Path) -> Path:
    """Write one graph from a resized image to results for a deployed directory; see :func:`build_end2end`.

    Args:
        path: directory that ``tools/deploy.py --export`` wrote.
        engine: name of the engine.
        out: file to write.

    Raises:
        CheckpointError: the directory is incomplete, altered, or has no graphs for the engine.
        ExportError: the model runs through OpenMMLab only, or its decoder has no ONNX operators.
    """
    graphs = read_manifest(path)['graphs']
    if 'dense' not in graphs.get(engine, {}):
        raise CheckpointError(
            f'{path}: has no graph for {engine} (it has: {", ".join(graphs) or "none"}). Write it again with '
            'tools/deploy.py --export'
        )
    dense = graph_file(Path(path), engine, graphs[engine]['dense'])
    return build_end2end(dense, read_pipeline(path, graphs), out, find_engine(engine))


def build_end2end(dense: Path, pipeline: Mapping[str, Any], out: Path, engine: Engine) -> Path:
    """Write one graph from a resized image to results.

    Its input ``image`` has the shape ``(1, H, W, 3)``, uint8, BGR: an image after the steps of the pipeline (resized,
    padded). Boxes are in its pixels. The nodes of the dense part stay as they are.

    Args:
        dense: graph of the dense part, for any image size.
        pipeline: content of the pipeline file of its directory.
        out: file to write.
        engine: that the graph is for.

    Raises:
        ExportError: the decoder has no ONNX operators.
    """
    import onnx
    from onnx import helper

    decoder = pipeline['decoder']
    if decoder['type'] not in DECODERS:
        raise ExportError(
            f'end2end: a decoder of type {decoder["type"]!r} has no ONNX operators. Expected one of '
            f'{", ".join(DECODERS)}; mmgdrq_runtime runs it'
        )
    model = onnx.load(str(dense))
    append, results = DECODERS[decoder['type']]
    before, after = Operators('before'), Operators('after', engine.suppresses_equal)
    add_preprocessing(before, 'image', pipeline['preprocessing'], model.graph.input[0].name)
    append(after, [value.name for value in model.graph.output], 'image', decoder)
    image = helper.make_tensor_value_info('image', UINT8, [1, 'height', 'width', 3])
    graph = helper.make_graph(
        [*before.nodes, *model.graph.node, *after.nodes],
        'end2end',
        [image],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in results.items()],
        [*before.constants, *model.graph.initializer, *after.constants],
    )
    whole = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(whole)
    onnx.save(whole, str(out))
    return out
